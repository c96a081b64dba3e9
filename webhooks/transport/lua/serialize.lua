#!lua flags=allow-oom
-- Makes a parent's lanes one serial lane. ARGV: prefix, parent, "1", or "0" to end it, then names of queues.
--#include now
--#include lanes
local parent = ARGV[2]
if ARGV[3] == '0' then return redis.call('SREM', key('serial'), parent) end
redis.call('SADD', key('serial'), parent)
-- The serial lane waits for all messages of its parts that are in flight.
local taken = redis.call('HGETALL', key('taken'))
for i = 1, #taken, 2 do
  local q, lane, position = string.match(taken[i + 1], '^([^\n]*)\n([^\n]*)\n(.*)$')
  if lane and string.sub(lane, 1, #parent + 1) == parent .. '/' then
    local all = parent .. '{SERIAL}'
    redis.call('HSET', key('taken'), taken[i], q .. '\n' .. all .. '\n' .. position)
    redis.call('ZADD', key('flight.' .. q .. '/' .. all), now, taken[i])
    redis.call('EXPIRE', key('flight.' .. q .. '/' .. all), 86400)
  end
end
for i = 4, #ARGV do
  local q, all = ARGV[i], parent .. '{SERIAL}'
  for _, lane in ipairs(redis.call('SMEMBERS', key('lanes.' .. q))) do
    if string.sub(lane, 1, #parent + 1) == parent .. '/' then
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
