-- queued -> canceled; running -> running, with the request set and told to its worker.
-- Returns the snapshot, or false.
local id, tenant = unpack(ARGV, 2)
local job = read(id, tenant)
if not job then
  return false
end
if job.state == 'queued' then
  finalize(job, 'canceled', now())
elseif job.state == 'running' and job.cancel ~= '1' then
  set(job, 'cancel', '1')
  redis.call('PUBLISH', key('cancel'), id)
end
return snapshot(job)
