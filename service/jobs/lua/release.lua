-- running -> queued, or -> canceled where that was asked for, or -> failed at the last attempt.
-- Returns the snapshot, or false where the job is not this attempt's.
local id, attempt, delay, failure = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  return false
end
local time = now()
if job.cancel == '1' then
  finalize(job, 'canceled', time)
  return snapshot(job)
end
if failure ~= '' then
  local failures = count_failure(job)
  if failures >= limits.max_attempts then
    finalize(job, 'failed', time, failure)
    return snapshot(job)
  end
end
set(job, 'state', 'queued')
unset(job, 'progress')
redis.call('ZREM', key('running'), id)
redis.call('ZADD', key('waiting', job.lane), job.created, id)
-- Its next claim comes before all that is new, but not before the delay is over.
redis.call('ZADD', key('returned'), integer(time + math.min(tonumber(delay), limits.lease)), id)
state_event(id, 'queued', attempt)
wake()
return snapshot(job)
