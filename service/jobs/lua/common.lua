-- What all transitions share. KEYS[1] is the root, a hash tag: every key is built from it and so
-- lies in the same slot. ARGV[1] holds the limits; times are milliseconds by this server's clock.

local root = KEYS[1]
local limits = cjson.decode(ARGV[1])

local GROUP = 'workers'
local RETURNED = 'returned' -- the consumer that holds what workers handed back
local LANES = {'high', 'normal', 'low'}
local EVENTS_KEPT = 200

local function key(...)
  return table.concat({root, ...}, ':')
end

local function integer(number)
  return string.format('%.0f', number)
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The job's fields, or nil. Another tenant's job does not exist; '' is the operator.
local function read(id, tenant)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then
    return nil
  end
  local job = {}
  for i = 1, #flat, 2 do
    job[flat[i]] = flat[i + 1]
  end
  if tenant and tenant ~= '' and tenant ~= job.tenant then
    return nil
  end
  return job
end

local function is_final(job)
  return job.state ~= 'queued' and job.state ~= 'running'
end

-- The running job, if `attempt` is its newest: the fence before every write of a worker.
local function held(id, attempt)
  local job = read(id)
  if job and job.state == 'running' and job.attempt == attempt then
    return job
  end
end

-- {fields and values, queue position}: 1 is next, 0 does not wait.
local function snapshot(id)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then
    return false
  end
  local position = 0
  local ahead = 0
  local lane = redis.call('HGET', key('job', id), 'lane')
  for _, name in ipairs(LANES) do
    if name == lane then
      local rank = redis.call('ZRANK', key('waiting', name), id)
      position = rank and ahead + rank + 1 or 0
      break
    end
    ahead = ahead + redis.call('ZCARD', key('waiting', name))
  end
  return {flat, position}
end

local function event(id, kind, data)
  redis.call('XADD', key('events', id), 'MAXLEN', EVENTS_KEPT, '*', 'kind', kind, 'data', data)
end

local function state_event(id, state, attempt, failure)
  local data = {state = state, attempt = tonumber(attempt)}
  if failure and failure ~= '' then
    data.error = cjson.decode(failure)
  end
  event(id, 'state', cjson.encode(data))
end

local function set(id, ...)
  redis.call('HSET', key('job', id), ...)
end

-- Takes a delivered entry out of its lane. An entry that nobody has read must stay: deleting it
-- would blind XINFO's `lag`, by which the workers are scaled.
local function drop(lane, entry)
  redis.call('XACK', key('lane', lane), GROUP, entry)
  redis.call('XDEL', key('lane', lane), entry)
end

-- Brings the job to its final state; the lane's entry is the caller's to drop.
local function finalize(job, state, time, failure, result)
  local id = job.id
  local kept = state == 'succeeded' and limits.result_ttl or 0
  set(id, 'state', state, 'finished', integer(time))
  if failure and failure ~= '' then
    set(id, 'error', failure)
  end
  if result and result ~= '' then
    set(id, 'result', result, 'expires', integer(time + kept))
  end
  redis.call('ZREM', key('waiting', job.lane), id)
  redis.call('ZREM', key('running'), id)
  redis.call('ZADD', key('garbage'), integer(time + kept), id)
  state_event(id, state, job.attempt, failure)
  redis.call('PEXPIRE', key('job', id), integer(limits.record_ttl))
  redis.call('PEXPIRE', key('events', id), integer(limits.record_ttl))
end

-- Expires a job that was not started in time. A job that has been started does not expire.
local function expire(job, time)
  if job.state == 'queued' and job.attempt == '0'
      and tonumber(job.created) + limits.queue_ttl <= time then
    finalize(job, 'expired', time)
    return true
  end
  return false
end
