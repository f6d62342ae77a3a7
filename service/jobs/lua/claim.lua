-- queued -> running, for the worker ARGV[2]; running -> running, where a lease has run out.
-- Returns {'claimed', snapshot, submission}, {'again'}, or {'empty', ms until something may become due or -1}.
local worker = ARGV[2]
local time = now()
local MOST_ENDED = 100

-- Ends a job that is not to be started (again). Tells whether it did.
local function ended(job)
  if job.state == 'queued' then
    return expire(job, time)
  end
  if job.cancel == '1' then
    finalize(job, 'canceled', time)
    return true
  end
  local failures = count_failure(job)
  if failures < limits.max_attempts then
    return false
  end
  finalize(job, 'failed', time, cjson.encode({code = 'worker_lost', message =
    'The worker was lost ' .. failures .. ' times while it ran this job.'}))
  return true
end

-- Takes out a job whose record somebody deleted.
local function forget(id, slot)
  redis.call('ZREM', key('returned'), id)
  redis.call('ZREM', key('running'), id)
  if slot then
    redis.call('ZREM', key('waiting', slot.lane), id)
    redis.call('ZREM', key('waiting', slot.lane, slot.tenant), id)
    settle(slot.tenant)
  end
end

local function start(job)
  local id, before = job.id, job.state
  local first = job.attempt == '0'
  local attempt = integer(tonumber(job.attempt) + 1)
  set(job, 'state', 'running', 'attempt', attempt, 'started', integer(time), 'worker', worker)
  redis.call('ZADD', key('running'), integer(time + limits.lease), id)
  if before == 'queued' then
    redis.call('ZREM', key('waiting', job.lane), id)
  end
  if first then
    redis.call('SADD', key('started', job.tenant), id)
    if limits.max_running > 0 then
      settle(job.tenant)
    end
  else
    unset(job, 'progress')
    redis.call('ZREM', key('returned'), id)
  end
  state_event(id, 'running', attempt)
  return {'claimed', snapshot(job), job.submission}
end

local function first_due(name)
  return redis.call('ZRANGEBYSCORE', key(name), '-inf', integer(time), 'LIMIT', 0, 1)[1]
end

-- Before all that is new: what was handed back, then what was lost.
for _ = 1, MOST_ENDED do
  local id = first_due('returned') or first_due('running')
  if not id then
    break
  end
  local job = read(id)
  if not job then
    forget(id)
  elseif not ended(job) then
    return start(job)
  end
end

for _ = 1, MOST_ENDED do
  local slot = next_turn()
  if not slot then
    -- Nobody waits for a turn, so turns may begin anew.
    redis.call('DEL', key('places'), key('round'))
    redis.call('DEL', key('wake'))
    local due = -1
    for _, name in ipairs({'returned', 'running'}) do
      local first = tonumber(redis.call('ZRANGE', key(name), 0, 0, 'WITHSCORES')[2])
      if first and (due < 0 or first - time < due) then
        due = math.max(0, first - time)
      end
    end
    return {'empty', due}
  end
  local job = read(slot.id)
  if not job then
    forget(slot.id, slot)
  elseif room(slot.tenant) == 0 then -- the cap is lower than when the slot was given
    settle(slot.tenant)
  elseif not ended(job) then
    take(slot)
    return start(job)
  end
end
return {'again'}
