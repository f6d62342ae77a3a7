-- Takes the consumer ARGV[2] out of the groups where it holds nothing: XGROUP DELCONSUMER would
-- throw what it holds out of the pending list. With '', every consumer that was not heard of for
-- ten leases (one that lives after all is made anew by its next claim). Returns how many were taken out.
local name = ARGV[2]
local gone = 0
for _, lane in ipairs(LANES) do
  local stream = key('lane', lane)
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, GROUP)
  if not consumers.err then
    for _, flat in ipairs(consumers) do
      local consumer = {}
      for i = 1, #flat, 2 do
        consumer[flat[i]] = flat[i + 1]
      end
      local leaves = consumer['name'] == name
        or (name == '' and consumer['idle'] > 10 * limits.lease)
      if leaves and consumer['pending'] == 0 then
        redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer['name'])
        gone = gone + 1
      end
    end
  end
end
return gone
