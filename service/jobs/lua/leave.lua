-- A worker leaves. It may have taken a wake and not acted on it, so the next one is woken.
if redis.call('ZCARD', key('turns')) > 0 then
  wake()
end
