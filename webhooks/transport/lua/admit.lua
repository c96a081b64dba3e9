#!lua flags=allow-oom
-- Decides which attempts may be made without a message.
-- KEYS: unacked. ARGV: prefix, queue, free threads of this worker, all its threads, maximum seconds in flight, then per
-- attempt: tag, lane, rate limit and burst or "". Returns per attempt: 1, now, and it counts as in flight; 2, in a
-- moment: its lane is not slow, no attempt of it is stuck and few messages wait; else 0.
--#include now
--#include lanes
--#include limit
local q, room, slots, held_s = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local holder = holder_of(ARGV[6])
local threads = math.max(tonumber(redis.call('GET', key('threads')) or '0'), slots)
-- The messages of these attempts' events are in unacked and use no thread.
local free = math.min(math.max(threads - redis.call('HLEN', KEYS[1]), 0) + room, threads)
--#include turns
local reply = {}
for i = 6, #ARGV, 4 do
  local tag, lane = ARGV[i], ARGV[i + 1]
  set_limit(q, lane, ARGV[i + 2], ARGV[i + 3])
  local answer = 0
  local waiting = redis.call('ZCARD', key('lane.' .. q .. '/' .. lane))
  local is_over = redis.call('EXISTS', key('over.' .. tag)) == 1
  if room > 0 and waiting == 0 and not is_over and not why_not(q, lane, true) then
    room = room - 1
    note_flight(q, lane, tag)
    redis.call('HSET', key('taken'), tag, q .. '\n' .. lane .. '\n')  -- for `OVERDUE`, if its process dies
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
