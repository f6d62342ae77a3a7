-- Answers only where writes are taken: a replica, a full or a loading server refuses.
redis.call('SET', key('ping'), '1', 'PX', 1000)
return 'pong'
