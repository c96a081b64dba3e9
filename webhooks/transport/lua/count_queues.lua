#!lua flags=no-writes
-- KEYS: taken, then per queue its parked set and its lists. ARGV: prefix, number of lists per queue, then the queues.
-- Returns per queue the fields of `QueueCounts`; the age as text or "".
local time, behind = redis.call('TIME'), redis.call('HGET', ARGV[1] .. 'webhooks.clock', 'behind')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000 + (tonumber(behind) or 0)
local lists, unacked, reply = tonumber(ARGV[2]), {}, {}
for _, where in ipairs(redis.call('HVALS', KEYS[1])) do
  local queue = string.match(where, '^([^\n]*)')
  unacked[queue] = (unacked[queue] or 0) + 1
end
for i = 3, #ARGV do
  local queue, key = ARGV[i], 1 + (i - 3) * (lists + 1) + 1
  local waiting, oldest = 0, nil
  for n = 1, lists do waiting = waiting + redis.call('LLEN', KEYS[key + n]) end
  local lanes = redis.call('SMEMBERS', ARGV[1] .. 'webhooks.lanes.' .. queue)
  for _, lane in ipairs(lanes) do
    local line = ARGV[1] .. 'webhooks.lane.' .. queue .. '/' .. lane
    waiting = waiting + redis.call('ZCARD', line)
    local position = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')[2]
    if position then oldest = math.min(oldest or math.huge, tonumber(position) / 1000000) end
  end
  reply[#reply + 1] = waiting
  reply[#reply + 1] = unacked[queue] or 0
  reply[#reply + 1] = redis.call('ZCARD', KEYS[key])
  reply[#reply + 1] = oldest and string.format('%.3f', math.max(0, now - oldest)) or ''
  reply[#reply + 1] = #lanes
  reply[#reply + 1] = redis.call('ZCARD', ARGV[1] .. 'webhooks.later.' .. queue)
end
return reply
