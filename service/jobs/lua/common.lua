-- What all transitions share. KEYS[1] is the root, a hash tag: every key is built from it and so
-- lies in the same slot. ARGV[1] holds the limits; times are milliseconds by this server's clock.

local root = KEYS[1]
local limits = cjson.decode(ARGV[1])

local LANES = {'high', 'normal', 'low'}
local LOW_FIRST_EVERY = 8
local EVENTS_KEPT = 200
local EVENTS_TTL = 3600 * 1000 -- from the job's end
local WAKES_KEPT = 64

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

-- Writes fields and values into the record and into what was read of it.
local function set(job, ...)
  redis.call('HSET', key('job', job.id), ...)
  local written = {...}
  for i = 1, #written, 2 do
    job[written[i]] = written[i + 1]
  end
end

local function unset(job, name)
  redis.call('HDEL', key('job', job.id), name)
  job[name] = nil
end

-- Counts an attempt that ended badly; returns how many did.
local function count_failure(job)
  local failures = redis.call('HINCRBY', key('job', job.id), 'failures', 1)
  job.failures = integer(failures)
  return failures
end

-- Wakes one worker that waits. A wake is a hint: one that is lost costs a worker's second of waiting.
local function wake()
  if redis.call('LLEN', key('wake')) < WAKES_KEPT then
    redis.call('LPUSH', key('wake'), '1')
  end
end

-- Turns. A job that waits and may start is stood for by a slot in `turns`, and the slot's tenant
-- starts one of its jobs. A tenant's slots have consecutive rounds, so it is served once a round; its
-- place within the round stays the same from round to round. A tenant that comes anew takes the
-- last place of the round that is being served. Hence nobody is served twice while another waits,
-- in whichever lane: lanes order the jobs of one tenant.

-- Slots of one round sort by place.
local function slot_name(place, round, tenant)
  return string.format('%013.0f:%.0f:%s', place, round, tenant)
end

-- {last: the round of the last slot, slots: how many, place}
local function turn(tenant)
  local packed = redis.call('HGET', key('places'), tenant)
  if not packed then
    return {last = -1, slots = 0, place = 0}
  end
  local last, slots, place = string.match(packed, '^(%S+) (%S+) (%S+)$')
  return {last = tonumber(last), slots = tonumber(slots), place = tonumber(place)}
end

local function set_turn(tenant, of)
  redis.call('HSET', key('places'), tenant,
    string.format('%.0f %.0f %.0f', of.last, of.slots, of.place))
end

local function current_round()
  return tonumber(redis.call('HGET', key('round'), 'current') or '0')
end

-- How many of the tenant's jobs wait that were never started.
local function waiting(tenant)
  local count = 0
  for _, lane in ipairs(LANES) do
    count = count + redis.call('ZCARD', key('waiting', lane, tenant))
  end
  return count
end

-- How many more of the tenant's jobs may start. One that has started keeps its place to its end,
-- also while it is handed back.
local function room(tenant)
  if limits.max_running == 0 then
    return math.huge
  end
  return math.max(0, limits.max_running - redis.call('SCARD', key('started', tenant)))
end

-- Gives the tenant as many slots as jobs of it wait and may start; the others are parked. To be
-- called after every change of what waits or has started.
local function settle(tenant)
  local count = waiting(tenant)
  local wanted = math.min(room(tenant), count)
  local of = turn(tenant)
  if count == 0 then
    redis.call('HDEL', key('served'), tenant)
  end
  if wanted == of.slots then
    return
  end
  if of.slots == 0 then
    local current = current_round()
    if of.last < current then
      of.last = current - 1
      of.place = redis.call('HINCRBY', key('round'), 'places', 1)
    end
  end
  while of.slots < wanted do
    of.slots = of.slots + 1
    of.last = of.last + 1
    redis.call('ZADD', key('turns'), integer(of.last), slot_name(of.place, of.last, tenant))
    wake()
  end
  while of.slots > wanted do
    redis.call('ZREM', key('turns'), slot_name(of.place, of.last, tenant))
    of.slots = of.slots - 1
    of.last = of.last - 1
  end
  set_turn(tenant, of)
end

-- The first slot, and the lane and the id of the job whose turn it is, or nil. Every eighth start of
-- a tenant is from its lowest lane, against starvation.
local function next_turn()
  local slot = redis.call('ZRANGE', key('turns'), 0, 0)[1]
  if not slot then
    return nil
  end
  local round, tenant = string.match(slot, '^%d+:(%d+):(.*)$')
  local served = tonumber(redis.call('HGET', key('served'), tenant) or '0')
  local first, last, step = 1, #LANES, 1
  if (served + 1) % LOW_FIRST_EVERY == 0 then
    first, last, step = #LANES, 1, -1
  end
  for i = first, last, step do
    local id = redis.call('ZRANGE', key('waiting', LANES[i], tenant), 0, 0)[1]
    if id then
      return {name = slot, lane = LANES[i], round = round, tenant = tenant, id = id}
    end
  end
end

-- Takes the slot out, and its job: as many slots as jobs.
local function take(slot)
  redis.call('ZREM', key('turns'), slot.name)
  redis.call('ZREM', key('waiting', slot.lane, slot.tenant), slot.id)
  redis.call('HSET', key('round'), 'current', slot.round)
  redis.call('HINCRBY', key('served'), slot.tenant, 1)
  local of = turn(slot.tenant)
  of.slots = of.slots - 1
  set_turn(slot.tenant, of)
end

-- What a caller is told of a job that was read: {fields and values, queue position}. Position 1 is
-- next, 0 does not wait. A parked job stands where it would if it might start now. The submission,
-- which may be long, is for the worker that claims the job only.
local function snapshot(job)
  local flat = {}
  for name, value in pairs(job) do
    if name ~= 'submission' then
      flat[#flat + 1] = name
      flat[#flat + 1] = value
    end
  end
  if job.state ~= 'queued' then
    return {flat, 0}
  end
  local id = job.id
  local returned = redis.call('ZRANK', key('returned'), id)
  if returned then
    return {flat, returned + 1}
  end
  local ahead = redis.call('ZCARD', key('returned'))
  local rank = redis.call('ZRANK', key('waiting', job.lane, job.tenant), id)
  for _, lane in ipairs(LANES) do
    if lane == job.lane then
      break
    end
    rank = rank + redis.call('ZCARD', key('waiting', lane, job.tenant))
  end
  local of = turn(job.tenant)
  local parked = rank - of.slots
  if parked < 0 then
    local name = slot_name(of.place, of.last + 1 + parked, job.tenant)
    return {flat, ahead + redis.call('ZRANK', key('turns'), name) + 1}
  end
  local round = math.max(of.last, current_round()) + 1 + parked
  ahead = ahead + redis.call('ZCOUNT', key('turns'), '-inf', '(' .. integer(round))
  return {flat, ahead + parked + 1}
end

-- Brings the job to its final state, out of every set.
local function finalize(job, state, time, failure, result)
  local id, before = job.id, job.state
  local kept = state == 'succeeded' and limits.result_ttl or 0
  local fields = {'state', state, 'finished', integer(time)}
  local function with(...)
    for _, each in ipairs({...}) do
      fields[#fields + 1] = each
    end
  end
  if failure and failure ~= '' then
    with('error', failure)
  end
  if result and result ~= '' then
    with('result', result, 'expires', integer(time + kept))
  end
  set(job, unpack(fields))
  if before == 'running' then
    redis.call('ZREM', key('running'), id)
  else
    redis.call('ZREM', key('waiting', job.lane), id)
  end
  if job.attempt == '0' then
    redis.call('ZREM', key('waiting', job.lane, job.tenant), id)
  else
    redis.call('SREM', key('started', job.tenant), id)
    if before == 'queued' then -- handed back
      redis.call('ZREM', key('returned'), id)
    end
  end
  settle(job.tenant)
  redis.call('ZADD', key('garbage'), integer(time + kept), id)
  state_event(id, state, job.attempt, failure)
  redis.call('PEXPIRE', key('job', id), integer(limits.record_ttl))
  redis.call('PEXPIRE', key('events', id), integer(math.min(EVENTS_TTL, limits.record_ttl)))
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
