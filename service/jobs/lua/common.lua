-- What all transitions share. KEYS[1] is the root, a hash tag: every key is built from it and so
-- lies in the same slot. ARGV[1] holds the limits; times are milliseconds by this server's clock.

local root = KEYS[1]
local limits = cjson.decode(ARGV[1])

local LANES = {'high', 'normal', 'low'}
local RANK = {high = 0, normal = 1, low = 2}
local LANE_SPAN = 2 ^ 50 -- `ready` is scored by lane, then by round: all exact in a double
local EVENTS_KEPT = 200
local EVENTS_TTL = 3600 * 1000 -- from the job's end; a stream takes 4 KiB at least (Redis 7)
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

local function set(id, ...)
  redis.call('HSET', key('job', id), ...)
end

-- Wakes one worker that waits. A wake is a hint: one that is lost costs a worker's second of waiting.
local function wake()
  if redis.call('LLEN', key('wake')) < WAKES_KEPT then
    redis.call('LPUSH', key('wake'), '1')
  end
end

-- Turns. A job that waits and may start is stood for by a slot in `ready`, and the slot's tenant
-- starts the first of its jobs in that lane. A tenant's slots in a lane have consecutive rounds,
-- so it is served once a round; its place within the round stays the same from round to round.
-- A tenant that comes anew takes the last place of the round that is being served. Hence nobody is
-- served twice while another waits.

local function slot_score(lane, round)
  return integer(RANK[lane] * LANE_SPAN + round)
end

-- Slots of one score sort by place.
local function slot_name(lane, place, round, tenant)
  return string.format('%s:%013.0f:%.0f:%s', lane, place, round, tenant)
end

-- {last: the round of the last slot, slots: how many, place}
local function turn(lane, tenant)
  local packed = redis.call('HGET', key('turns', lane), tenant)
  if not packed then
    return {last = -1, slots = 0, place = 0}
  end
  local last, slots, place = string.match(packed, '^(%S+) (%S+) (%S+)$')
  return {last = tonumber(last), slots = tonumber(slots), place = tonumber(place)}
end

local function set_turn(lane, tenant, of)
  redis.call('HSET', key('turns', lane), tenant,
    string.format('%.0f %.0f %.0f', of.last, of.slots, of.place))
end

-- How many more of the tenant's jobs may start. One that has started keeps its place to its end,
-- also while it is handed back.
local function room(tenant)
  if limits.max_running == 0 then
    return math.huge
  end
  return math.max(0, limits.max_running - redis.call('SCARD', key('started', tenant)))
end

-- Gives the tenant as many slots in each of the lanes as jobs of it wait there and may start; the
-- others are parked. To be called after every change of what waits or has started, with LANES where
-- there may be parked jobs in lanes that did not change.
local function settle(tenant, lanes)
  local most = room(tenant)
  for _, lane in ipairs(lanes) do
    local wanted = math.min(most, redis.call('ZCARD', key('waiting', lane, tenant)))
    local of = turn(lane, tenant)
    if wanted ~= of.slots then
      if of.slots == 0 then
        local current = tonumber(redis.call('HGET', key('round', lane), 'current') or '0')
        if of.last < current then
          of.last = current - 1
          of.place = redis.call('HINCRBY', key('round', lane), 'places', 1)
        end
      end
      while of.slots < wanted do
        of.slots = of.slots + 1
        of.last = of.last + 1
        redis.call('ZADD', key('ready'), slot_score(lane, of.last),
          slot_name(lane, of.place, of.last, tenant))
        wake()
      end
      while of.slots > wanted do
        redis.call('ZREM', key('ready'), slot_name(lane, of.place, of.last, tenant))
        of.slots = of.slots - 1
        of.last = of.last - 1
      end
      set_turn(lane, tenant, of)
    end
  end
end

-- The lane's first slot and the id of the job whose turn it is, or nil.
local function next_turn(lane)
  local slot = redis.call('ZRANGEBYSCORE', key('ready'), slot_score(lane, 0),
    '(' .. slot_score(lane, LANE_SPAN), 'LIMIT', 0, 1)[1]
  if slot then
    local round, tenant = string.match(slot, '^%a+:%d+:(%d+):(.*)$')
    local id = redis.call('ZRANGE', key('waiting', lane, tenant), 0, 0)[1]
    return {name = slot, lane = lane, round = round, tenant = tenant, id = id}
  end
end

-- Takes the slot out, and its job: as many slots as jobs.
local function take(slot)
  redis.call('ZREM', key('ready'), slot.name)
  redis.call('ZREM', key('waiting', slot.lane, slot.tenant), slot.id)
  redis.call('HSET', key('round', slot.lane), 'current', slot.round)
  local of = turn(slot.lane, slot.tenant)
  of.slots = of.slots - 1
  set_turn(slot.lane, slot.tenant, of)
end

-- {fields and values, queue position}: 1 is next, 0 does not wait. A parked job stands where it
-- would if it might start now.
local function snapshot(id)
  local flat = redis.call('HGETALL', key('job', id))
  if #flat == 0 then
    return false
  end
  local job = {}
  for i = 1, #flat, 2 do
    job[flat[i]] = flat[i + 1]
  end
  if job.state ~= 'queued' then
    return {flat, 0}
  end
  local returned = redis.call('ZRANK', key('returned'), id)
  if returned then
    return {flat, returned + 1}
  end
  local ahead = redis.call('ZCARD', key('returned'))
  local rank = redis.call('ZRANK', key('waiting', job.lane, job.tenant), id)
  local of = turn(job.lane, job.tenant)
  local parked = rank - of.slots
  if parked < 0 then
    local name = slot_name(job.lane, of.place, of.last + 1 + parked, job.tenant)
    return {flat, ahead + redis.call('ZRANK', key('ready'), name) + 1}
  end
  local current = tonumber(redis.call('HGET', key('round', job.lane), 'current') or '0')
  local round = math.max(of.last, current) + 1 + parked
  ahead = ahead + redis.call('ZCOUNT', key('ready'), '-inf', '(' .. slot_score(job.lane, round))
  return {flat, ahead + parked + 1}
end

-- Brings the job to its final state, out of every set.
local function finalize(job, state, time, failure, result)
  local id = job.id
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
  set(id, unpack(fields))
  if job.state == 'running' then
    redis.call('ZREM', key('running'), id)
  else
    redis.call('ZREM', key('waiting', job.lane), id)
  end
  if job.attempt == '0' then
    redis.call('ZREM', key('waiting', job.lane, job.tenant), id)
  else
    redis.call('SREM', key('started', job.tenant), id)
    redis.call('ZREM', key('returned'), id)
  end
  settle(job.tenant, LANES)
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
