-- Prolongs the leases of slots. KEYS: where each slot is; ARGV: the lease in milliseconds, then each
-- slot's token. A slot whose lease has run out was given away and stays so.
local clock = redis.call('TIME')
local lease = tonumber(ARGV[1])
local ends = string.format('%.0f', clock[1] * 1000 + clock[2] / 1000 + lease)
for i, slots in ipairs(KEYS) do
  redis.call('ZADD', slots, 'XX', ends, ARGV[i + 1])
  redis.call('PEXPIRE', slots, ARGV[1])
end
return #KEYS
