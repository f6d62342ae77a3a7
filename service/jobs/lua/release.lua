-- running -> queued, or -> canceled where that was asked for, or -> failed at the last attempt.
-- Returns the snapshot, or false where the job is not this attempt's.
--
-- The entry goes to a consumer of its own, so that the worker may leave the group, with an idle
-- time that makes the next claim after the delay take it over, before all that is new.
local id, attempt, delay, failure = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  return false
end
if job.cancel == '1' then
  finalize(job, 'canceled', now())
  drop(job.lane, job.entry)
  return snapshot(id)
end
if failure ~= '' then
  local failures = redis.call('HINCRBY', key('job', id), 'failures', 1)
  if failures >= limits.max_attempts then
    finalize(job, 'failed', now(), failure)
    drop(job.lane, job.entry)
    return snapshot(id)
  end
end
set(id, 'state', 'queued')
redis.call('HDEL', key('job', id), 'progress')
redis.call('ZREM', key('running'), id)
redis.call('ZADD', key('waiting', job.lane), job.created, id)
state_event(id, 'queued', attempt)
local idle = math.max(0, limits.lease - tonumber(delay))
redis.call('XCLAIM', key('lane', job.lane), GROUP, RETURNED, 0, job.entry,
  'IDLE', integer(idle), 'JUSTID')
return snapshot(id)
