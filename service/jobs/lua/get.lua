-- The job's snapshot, or false.
local id, tenant = unpack(ARGV, 2)
return read(id, tenant) and snapshot(id)
