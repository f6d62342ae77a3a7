-- running -> succeeded | failed | canceled, by the newest attempt only.
-- Returns the snapshot, or false where the job is not this attempt's.
local id, attempt, state, failure, result = unpack(ARGV, 2)
local job = held(id, attempt)
if not job then
  -- The same call again: the answer to the first was lost on the way.
  local done = read(id)
  return done and done.state == state and done.attempt == attempt and snapshot(done)
end
finalize(job, state, now(), failure, result)
return snapshot(job)
