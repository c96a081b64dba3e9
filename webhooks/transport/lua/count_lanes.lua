#!lua flags=allow-oom
-- Counts messages in lanes, and gives evicted lanes a turn again. ARGV: prefix, queue, "1" to delete the messages.
--#include now
--#include lanes
local q, sum = ARGV[2], 0
for _, lane in ipairs(redis.call('SMEMBERS', key('lanes.' .. q))) do
  local line = key('lane.' .. q .. '/' .. lane)
  sum = sum + redis.call('ZCARD', line)
  if ARGV[3] == '1' then
    redis.call('DEL', line)
    redis.call('ZREM', key('later.' .. q), lane)
    step_out(q, lane)
  elseif not redis.call('ZSCORE', key('later.' .. q), lane) then
    line_up(q, lane, 1)
  end
end
if ARGV[3] == '1' then redis.call('DEL', key('lanes.' .. q)) end
return sum
