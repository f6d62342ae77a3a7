-- {waiting in each lane ..., of these handed back, of these with a turn, running}.
local counts = {}
for _, lane in ipairs(LANES) do
  counts[#counts + 1] = redis.call('ZCARD', key('waiting', lane))
end
counts[#counts + 1] = redis.call('ZCARD', key('returned'))
counts[#counts + 1] = redis.call('ZCARD', key('ready'))
counts[#counts + 1] = redis.call('ZCARD', key('running'))
return counts
