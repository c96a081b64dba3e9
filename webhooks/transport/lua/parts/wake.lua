local function wake(key)
  if redis.call('LLEN', key) == 0 then
    redis.call('LPUSH', key, '1')
    redis.call('PEXPIRE', key, 1000)
  end
end
