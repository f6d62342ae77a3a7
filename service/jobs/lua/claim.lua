-- queued -> running, for the worker ARGV[2]; running -> running, where a lease has run out.
-- Returns {'claimed', snapshot}, {'empty', {lane key, last entry read, ...}} or {'again'}.
--
-- Delivery by the stream's group and the change of the record are one step, so that the group's
-- pending list and the records never disagree, and a worker that dies has either claimed or not.
local worker = ARGV[2]
local time = now()
local LOW_FIRST_EVERY = 8
local MOST_DROPPED = 100

-- Starts the job of an entry that this worker holds; drops the entry of one that is not to start.
local function start(lane, entry)
  local found = redis.call('XRANGE', key('lane', lane), entry, entry)
  local id = found[1] and found[1][2][2]
  local job = id and read(id)
  if not job or is_final(job) or job.entry ~= entry or expire(job, time) then
    drop(lane, entry)
    return false
  end
  local failures = tonumber(job.failures)
  if job.state == 'running' then -- its worker is lost
    if job.cancel == '1' then
      finalize(job, 'canceled', time)
      drop(lane, entry)
      return false
    end
    failures = failures + 1
    set(id, 'failures', failures)
    if failures >= limits.max_attempts then
      finalize(job, 'failed', time, cjson.encode({code = 'worker_lost', message =
        'The worker was lost ' .. failures .. ' times while it ran this job.'}))
      drop(lane, entry)
      return false
    end
  end
  local attempt = integer(tonumber(job.attempt) + 1)
  redis.call('HDEL', key('job', id), 'progress')
  set(id, 'state', 'running', 'attempt', attempt, 'started', integer(time), 'worker', worker)
  redis.call('ZREM', key('waiting', lane), id)
  redis.call('ZADD', key('running'), integer(time), id)
  state_event(id, 'running', attempt)
  return {'claimed', snapshot(id)}
end

local dropped = 0

-- XPENDING with IDLE looks at the whole list; XAUTOCLAIM would hand out pages, and whoever does
-- not follow its cursor starves the entries behind the first page.
for _, lane in ipairs(LANES) do
  local stream = key('lane', lane)
  while true do
    local late = redis.pcall('XPENDING', stream, GROUP, 'IDLE', integer(limits.lease), '-', '+', 1)
    if late.err then -- no stream or no group yet: from '0', or what was submitted before is lost
      redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
      break
    end
    if not late[1] then
      break
    end
    local entry = late[1][1]
    redis.call('XCLAIM', stream, GROUP, worker, 0, entry, 'JUSTID')
    local claimed = start(lane, entry)
    if claimed then
      return claimed
    end
    dropped = dropped + 1
    if dropped >= MOST_DROPPED then
      return {'again'}
    end
  end
end

local starts = tonumber(redis.call('GET', key('starts')) or '0')
local order = LANES
if (starts + 1) % LOW_FIRST_EVERY == 0 then
  order = {'low', 'normal', 'high'}
end
for _, lane in ipairs(order) do
  while true do
    local read_new = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1,
      'STREAMS', key('lane', lane), '>')
    if not read_new then
      break
    end
    local claimed = start(lane, read_new[1][2][1][1])
    if claimed then
      redis.call('INCR', key('starts'))
      return claimed
    end
    dropped = dropped + 1
    if dropped >= MOST_DROPPED then
      return {'again'}
    end
  end
end

local seen = {}
for _, lane in ipairs(LANES) do
  local stream = key('lane', lane)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for i = 1, #group, 2 do
      fields[group[i]] = group[i + 1]
    end
    if fields['name'] == GROUP then
      seen[#seen + 1] = stream
      seen[#seen + 1] = fields['last-delivered-id']
    end
  end
end
return {'empty', seen}
