-- running -> running: how far the attempt is. Returns 'held', 'cancel' or 'lost'.
local id, attempt, progress = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  return 'lost'
end
set(job, 'progress', progress)
event(id, 'progress', progress)
return job.cancel == '1' and 'cancel' or 'held'
