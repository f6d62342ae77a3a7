-- running -> running: the lease starts anew. Returns 'held', 'cancel' or 'lost'.
local id, attempt, worker = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  return 'lost'
end
redis.call('XCLAIM', key('lane', job.lane), GROUP, worker, 0, job.entry, 'JUSTID')
return job.cancel == '1' and 'cancel' or 'held'
