#!lua flags=allow-oom
-- KEYS: unacked. ARGV: prefix, queue, attempts that the asking worker has free threads for, all its threads, the longest
-- that a message is in hand, then for each attempt that may be made without a message of its own: tag, lane, rate limit
-- and burst or "". Returns for each one 1 if it may be made now, and counts it among those in hand; 2 if that is to be
-- expected at any moment, as its endpoint is quick, or nobody knows and the worker has room for such, no attempt has been
-- in hand for long, and few wait before it; else 0.
--#include now
--#include lanes
--#include limit
local q, room, slots, held_s = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local holder = holder_of(ARGV[6])
local threads = math.max(tonumber(redis.call('GET', key('threads')) or '0'), slots)
-- The messages of these attempts' events are in hand, and take no thread.
local free = math.min(math.max(threads - redis.call('HLEN', KEYS[1]), 0) + room, threads)
--#include turns
local reply = {}
for i = 6, #ARGV, 4 do
  local tag, lane = ARGV[i], ARGV[i + 1]
  set_limit(q, lane, ARGV[i + 2], ARGV[i + 3])
  local answer = 0
  -- Those that wait in the lane came before.
  local waiting = redis.call('ZCARD', key('lane.' .. q .. '/' .. lane))
  if room > 0 and waiting == 0 and not why_not(q, lane, true) then
    room = room - 1
    note_flight(q, lane, tag)
    redis.call('HSET', key('taken'), tag, q .. '\n' .. lane .. '\n')  -- so it can be found if its process dies
    free = free - 1
    answer = 1
  else
    local s = redis.call('HMGET', key('state.' .. q .. '/' .. lane), 'held', 'rate', 'mean', 'good', 'share')
    local is_slow = s[3] and (not s[4] or tonumber(s[3]) >= {SLOW_S}) or not s[4] and is_crowded(q)
    local oldest = redis.call('ZRANGE', key('flight.' .. q .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
    local is_stuck = oldest and now - tonumber(oldest) > {STUCK_S}
    local wait_s = waiting * (tonumber(s[3]) or {MEAN_S}) / (tonumber(s[5]) or {FIRST_WINDOW})
    local is_held = tonumber(s[1] or '0') > now
    if not is_held and not s[2] and not is_slow and not is_stuck and wait_s < {SOON_S} then answer = 2 end
  end
  reply[#reply + 1] = answer
end
return reply
