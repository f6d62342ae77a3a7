-- A tenant's jobs, newest first, behind the id `cursor`. Returns {next cursor or '', snapshot ...}.
-- The index holds ids, which sort by time; those whose record is gone are taken out on the way.
local tenant, cursor, state, task, limit = unpack(ARGV, 2)
local index = key('jobs', tenant)
local SCANNED = 2000
limit = tonumber(limit)

local page = {''}
local last = cursor
local scanned = 0
while scanned < SCANNED do
  local ids = redis.call('ZREVRANGEBYLEX', index, last == '' and '+' or '(' .. last, '-',
    'LIMIT', 0, 100)
  if #ids == 0 then
    return page
  end
  for _, id in ipairs(ids) do
    if #page > limit then
      page[1] = last
      return page
    end
    last = id
    scanned = scanned + 1
    local job = redis.call('HMGET', key('job', id), 'state', 'task')
    if not job[1] then
      redis.call('ZREM', index, id)
    elseif (state == '' or job[1] == state) and (task == '' or job[2] == task) then
      page[#page + 1] = snapshot(read(id))
    end
  end
end
page[1] = last
return page
