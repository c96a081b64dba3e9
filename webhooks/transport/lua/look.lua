#!lua flags=allow-oom
-- ARGV: prefix, queue, lanes. Returns for each one how many messages wait in it, how many are in hand, its share, and
-- for how many seconds the oldest one has waited, or "". Lines up those that were forgotten.
--#include now
--#include lanes
local q, reply = ARGV[2], {}
for i = 3, #ARGV do
  local lane = ARGV[i]
  local line = key('lane.' .. q .. '/' .. lane)
  local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  if first[1] and not redis.call('ZSCORE', key('later.' .. q), lane) then
    redis.call('SADD', key('lanes.' .. q), lane)
    line_up(q, lane, 1)
  end
  reply[#reply + 1] = redis.call('ZCARD', line)
  reply[#reply + 1] = redis.call('ZCARD', key('flight.' .. q .. '/' .. lane))
  reply[#reply + 1] = tonumber(redis.call('HGET', key('state.' .. q .. '/' .. lane), 'share') or '{FIRST_SHARE}')
  reply[#reply + 1] = first[2] and string.format('%.6f', math.max(0, now - tonumber(first[2]) / 1000000)) or ''
end
return reply
