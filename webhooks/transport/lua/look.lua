#!lua flags=allow-oom
-- Reads the state of lanes, and gives evicted lanes a turn again. ARGV: prefix, queue, lanes. Returns per lane:
-- messages waiting, messages in flight, window, seconds for which the oldest has waited or "".
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
  reply[#reply + 1] = tonumber(redis.call('HGET', key('state.' .. q .. '/' .. lane), 'share') or '{FIRST_WINDOW}')
  reply[#reply + 1] = first[2] and string.format('%.6f', math.max(0, now - tonumber(first[2]) / 1000000)) or ''
end
return reply
