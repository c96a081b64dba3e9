#!lua flags=allow-oom
-- Reports a worker's threads. ARGV: prefix, worker, threads, or 0 when it stops. Returns the number of lapsed leases.
--#include now
--#include lanes
local workers = key('workers')
if ARGV[3] == '0' then
  redis.call('HDEL', workers, ARGV[2])
else
  redis.call('HSET', workers, ARGV[2], string.format('%.3f', now) .. ' ' .. ARGV[3])
end
local all, sum = redis.call('HGETALL', workers), 0
for i = 1, #all, 2 do
  local seen, threads = string.match(all[i + 1], '^(%S+) (%d+)$')
  if seen and tonumber(seen) > now - {WORKER_GONE_S} then
    sum = sum + tonumber(threads)
  else
    redis.call('HDEL', workers, all[i])
  end
end
redis.call('SET', key('threads'), sum)
return redis.call('ZCOUNT', key('leases'), '-inf', now)
