-- (nothing) -> queued: record, lane, turn, index and idempotency key in one step.
-- Returns {'made' | 'known', snapshot}, {'conflict', id}, {'full', waiting} or {'tenant full', waiting}.
local SWEPT_EVERY = 32
local id, submission, task, model, lane, tenant, digest, hash, most = unpack(ARGV, 2)

-- The same submission again: the answer to the first was lost on the way.
if redis.call('EXISTS', key('job', id)) == 1 then
  return {'known', snapshot(read(id))}
end

local idempotency = key('idempotency', tenant, digest)
if digest ~= '' then
  local known = redis.call('HMGET', idempotency, 'job', 'hash')
  if known[1] and redis.call('EXISTS', key('job', known[1])) == 1 then
    if known[2] ~= hash then
      return {'conflict', known[1]}
    end
    return {'known', snapshot(read(known[1]))}
  end
end

local all = 0
for _, name in ipairs(LANES) do
  all = all + redis.call('ZCARD', key('waiting', name))
end
if all >= limits.max_queued then
  return {'full', all}
end
if most ~= '' then
  local own = waiting(tenant)
  if own >= tonumber(most) then
    return {'tenant full', own}
  end
end

local created = integer(now())
local job = {id = id}
set(job, 'id', id, 'state', 'queued', 'task', task, 'model', model, 'lane', lane, 'tenant', tenant,
  'created', created, 'attempt', '0', 'failures', '0', 'submission', submission)
redis.call('ZADD', key('waiting', lane), created, id)
local number = redis.call('INCR', key('submitted'))
redis.call('ZADD', key('waiting', lane, tenant), number, id)
settle(tenant)

for _, owner in ipairs({tenant, ''}) do -- '' is the operator, who sees all
  local index = key('jobs', owner)
  redis.call('ZADD', index, 0, id)
  -- Now and then, more out than came in: an index that nobody lists keeps no more than it has to.
  if number % SWEPT_EVERY == 0 then
    for _, oldest in ipairs(redis.call('ZRANGE', index, 0, 2 * SWEPT_EVERY)) do
      if redis.call('EXISTS', key('job', oldest)) == 1 then
        break
      end
      redis.call('ZREM', index, oldest)
    end
  end
end
if digest ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'hash', hash)
  redis.call('PEXPIRE', idempotency, integer(limits.idempotency_ttl))
end
return {'made', snapshot(job)}
