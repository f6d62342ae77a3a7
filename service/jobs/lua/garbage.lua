-- The ids of up to ARGV[2] jobs whose uploads and results are to be deleted now.
return redis.call('ZRANGEBYSCORE', key('garbage'), '-inf', integer(now()),
  'LIMIT', 0, tonumber(ARGV[2]))
