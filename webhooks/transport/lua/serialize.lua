#!lua flags=allow-oom
-- ARGV: prefix, what is to be one serial lane from now on, "1" or "0" for not any more, then names of queues.
--#include now
--#include lanes
local whole = ARGV[2]
if ARGV[3] == '0' then return redis.call('SREM', key('serial'), whole) end
redis.call('SADD', key('serial'), whole)
-- What is in hand of its parts counts as the one that may be, until all of it is back or done.
local taken = redis.call('HGETALL', key('taken'))
for i = 1, #taken, 2 do
  local q, lane, place = string.match(taken[i + 1], '^([^\n]*)\n([^\n]*)\n(.*)$')
  if lane and string.sub(lane, 1, #whole + 1) == whole .. '/' then
    local all = whole .. '{SERIAL}'
    redis.call('HSET', key('taken'), taken[i], q .. '\n' .. all .. '\n' .. place)
    redis.call('ZADD', key('flight.' .. q .. '/' .. all), now, taken[i])
    redis.call('EXPIRE', key('flight.' .. q .. '/' .. all), 86400)
  end
end
for i = 4, #ARGV do
  local q, all = ARGV[i], whole .. '{SERIAL}'
  for _, lane in ipairs(redis.call('SMEMBERS', key('lanes.' .. q))) do
    if string.sub(lane, 1, #whole + 1) == whole .. '/' then
      local line, dest = key('lane.' .. q .. '/' .. lane), key('lane.' .. q .. '/' .. all)
      redis.call('ZUNIONSTORE', dest, 2, dest, line)
      redis.call('DEL', line)
      redis.call('SREM', key('lanes.' .. q), lane)
      redis.call('ZREM', key('later.' .. q), lane)
      step_out(q, lane)
      redis.call('SADD', key('lanes.' .. q), all)
      line_up(q, all, 1)
    end
  end
end
return 1
