-- queued -> expired, for all jobs that were not started in time. Returns their number.
local MOST = 1000
local time = now()
local expired = 0
for _, lane in ipairs(LANES) do
  local ids = redis.call('ZRANGEBYSCORE', key('waiting', lane), '-inf',
    integer(time - limits.queue_ttl), 'LIMIT', 0, MOST)
  for _, id in ipairs(ids) do
    local job = read(id)
    if job and expire(job, time) then
      expired = expired + 1
    end
  end
end
return expired
