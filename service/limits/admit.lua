-- Admits one call of a key: its rate (GCRA) and its slots, in one step. Times are milliseconds by
-- this server's clock.
--
-- KEYS: the rate's theoretical arrival time; the slots taken, by the end of their leases.
-- ARGV: milliseconds between requests (0: no rate), burst, slots (0: no limit), token, lease.
-- Returns {'admitted' | 'rate' | 'busy', requests left, milliseconds until all of the burst is back,
-- milliseconds until the next request is admitted}. A call that is refused uses nothing up.
local interval, burst, slots = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local token, lease = ARGV[4], tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local arrival = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))

local function answer(verdict, arrives)
  local left = interval > 0 and math.floor((interval * burst - (arrives - now)) / interval + 1e-6) or 0
  local wait = math.max(0, arrives + interval - interval * burst - now)
  return {verdict, left, math.ceil(arrives - now), math.ceil(wait)}
end

if slots > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
  if redis.call('ZCARD', KEYS[2]) >= slots then
    return answer('busy', arrival)
  end
end
if interval > 0 then
  if arrival + interval - now > interval * burst + 1e-3 then
    return answer('rate', arrival)
  end
  arrival = arrival + interval
  redis.call('SET', KEYS[1], string.format('%.3f', arrival), 'PX',
    string.format('%.0f', math.ceil(arrival - now)))
end
if slots > 0 then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + lease), token)
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
return answer('admitted', arrival)
