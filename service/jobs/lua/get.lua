-- The job's snapshot, or false.
local id, tenant = unpack(ARGV, 2)
local job = read(id, tenant)
return job and snapshot(job)
