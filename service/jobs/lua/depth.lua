-- {waiting in each lane ..., milliseconds that the oldest of each has waited ..., of all these handed
-- back, with a turn, running}.
local counts = {}
for _, lane in ipairs(LANES) do
  counts[#counts + 1] = redis.call('ZCARD', key('waiting', lane))
end
for _, lane in ipairs(LANES) do
  local oldest = redis.call('ZRANGE', key('waiting', lane), 0, 0, 'WITHSCORES')
  counts[#counts + 1] = oldest[2] and math.max(0, now() - oldest[2]) or 0
end
counts[#counts + 1] = redis.call('ZCARD', key('returned'))
counts[#counts + 1] = redis.call('ZCARD', key('turns'))
counts[#counts + 1] = redis.call('ZCARD', key('running'))
return counts
