-- running -> running: the lease starts anew. Returns 'held', 'cancel' or 'lost'.
local id, attempt = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  return 'lost'
end
redis.call('ZADD', key('running'), integer(now() + limits.lease), id)
return job.cancel == '1' and 'cancel' or 'held'
