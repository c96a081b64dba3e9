-- `wall`, Redis's clock, and `now`, the same but never going back. Needs ARGV[1], the user's prefix.
local time = redis.call('TIME')
local wall = tonumber(time[1]) + tonumber(time[2]) / 1000000
local clock = redis.call('HMGET', ARGV[1] .. 'webhooks.clock', 'seen', 'behind')
local seen, behind = tonumber(clock[1]) or 0, tonumber(clock[2]) or 0
if wall < seen then behind = behind + seen - wall end
if wall < seen or wall > seen + 0.1 then
  redis.call('HSET', ARGV[1] .. 'webhooks.clock', 'seen', string.format('%.6f', wall),
    'behind', string.format('%.6f', behind))
end
local now = wall + behind
