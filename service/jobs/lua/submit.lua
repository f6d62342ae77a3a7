-- (nothing) -> queued: record, lane, turn, index, event and idempotency key in one step.
-- Returns {'made' | 'known', snapshot}, {'conflict', id} or {'full', waiting}.
local id, submission, task, model, lane, tenant, digest, hash = unpack(ARGV, 2)

-- The same submission again: the answer to the first was lost on the way.
if redis.call('EXISTS', key('job', id)) == 1 then
  return {'known', snapshot(id)}
end

local idempotency = key('idempotency', tenant, digest)
if digest ~= '' then
  local known = redis.call('HMGET', idempotency, 'job', 'hash')
  if known[1] and redis.call('EXISTS', key('job', known[1])) == 1 then
    if known[2] ~= hash then
      return {'conflict', known[1]}
    end
    return {'known', snapshot(known[1])}
  end
end

local waiting = 0
for _, name in ipairs(LANES) do
  waiting = waiting + redis.call('ZCARD', key('waiting', name))
end
if waiting >= limits.max_queued then
  return {'full', waiting}
end

local created = integer(now())
set(id, 'id', id, 'state', 'queued', 'task', task, 'model', model, 'lane', lane, 'tenant', tenant,
  'created', created, 'attempt', '0', 'failures', '0', 'submission', submission)
redis.call('ZADD', key('waiting', lane), created, id)
redis.call('ZADD', key('waiting', lane, tenant), redis.call('INCR', key('submitted')), id)
settle(tenant)

for _, owner in ipairs({tenant, ''}) do -- '' is the operator, who sees all
  local index = key('jobs', owner)
  redis.call('ZADD', index, 0, id)
  -- Two out for one in: the index stays as long as there are records, also if nobody lists it.
  for _, oldest in ipairs(redis.call('ZRANGE', index, 0, 1)) do
    if redis.call('EXISTS', key('job', oldest)) == 0 then
      redis.call('ZREM', index, oldest)
    end
  end
end
if digest ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'hash', hash)
  redis.call('PEXPIRE', idempotency, integer(limits.idempotency_ttl))
end
state_event(id, 'queued', 0)
return {'made', snapshot(id)}
