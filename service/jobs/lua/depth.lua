-- {waiting in each lane ..., running}.
local counts = {}
for _, lane in ipairs(LANES) do
  counts[#counts + 1] = redis.call('ZCARD', key('waiting', lane))
end
counts[#counts + 1] = redis.call('ZCARD', key('running'))
return counts
