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
local takers = math.max(threads - redis.call('HLEN', KEYS[1]), 0)
local free = math.min(takers + room, threads)
--#include turns
local over, is_any_over = {}, false
for i = 6, #ARGV, 4 do over[#over + 1] = key('over.' .. ARGV[i]) end
for i = 1, #over, 1000 do
  is_any_over = is_any_over or redis.call('EXISTS', unpack(over, i, math.min(i + 999, #over))) > 0
end

-- Returns whether few messages wait in a lane that is not slow and has no attempt that is stuck.
local function is_quick(l)
  if l.held > now or l.rate ~= '' then return false end
  if l.is_good and (l.mean or 0) >= {SLOW_S} or not l.is_good and (l.mean or is_crowded(q)) then return false end
  -- Nobody could take those that wait: the workers are full of events that would wait for them.
  if l.waiting > 0 and takers == 0 then return false end
  local wait_s = l.waiting * (l.mean or {MEAN_S}) / (l.window or {FIRST_WINDOW})
  if wait_s >= {SOON_S} then return false end
  if l.is_stuck == nil then
    local oldest = redis.call('ZRANGE', l.flight, 0, 0, 'WITHSCORES')[2]
    l.is_stuck = oldest ~= nil and now - tonumber(oldest) > {STUCK_S}
  end
  return not l.is_stuck
end

local reply, places = {}, {}
for i = 6, #ARGV, 4 do
  local tag, lane, rate, burst = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local l = look_at(q, lane, true)
  if l.rate ~= rate or l.burst ~= burst then
    set_limit(q, lane, rate, burst)
    read_state(l)
  end
  local is_over = is_any_over and redis.call('EXISTS', key('over.' .. tag)) == 1
  if room > 0 and l.waiting == 0 and not is_over and not why_not(l) then
    room = room - 1
    free = free - 1
    note_flight(l, tag)
    places[#places + 1] = tag
    places[#places + 1] = q .. '\n' .. lane .. '\n'
    reply[#reply + 1] = 1
  else
    reply[#reply + 1] = is_quick(l) and 2 or 0
  end
end
call_many('HSET', key('taken'), places)  -- for `OVERDUE`, if its process dies
save_flights()
return reply
