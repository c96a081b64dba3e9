#!lua flags=allow-oom
-- KEYS: unacked, unacked_index. ARGV: prefix, then for each message: tag, what to do ("ack", "next", "stale", "also",
-- "park"), a number, key, value, wake-up. What is to be done besides removing the note is done only by who
-- removed it. A message that came out of a lane goes back to its place there. Instead of a message, "report": what an
-- attempt tells of its endpoint; then the six are lane, "report", milliseconds, verdict, "", queue; "limit": lane,
-- "limit", rate and burst or "", "", queue; "hold": lane, "hold", seconds, "", "", queue; and "done", of what `ADMIT`
-- let go: tag, "done", "", lane, "", queue.
--#include now
--#include wake
--#include lanes
--#include leave
--#include limit
--#include report
local is_ours = false
local q, lane, place
for i = 2, #ARGV, 6 do
  local tag, act, number, where, value = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if act == 'report' then
    report(ARGV[i + 5], tag, number, where)
    is_ours = false
  elseif act == 'limit' then
    set_limit(ARGV[i + 5], tag, number, where)
    is_ours = false
  elseif act == 'hold' then
    local state = key('state.' .. ARGV[i + 5] .. '/' .. tag)
    redis.call('HSET', state, 'held', string.format('%.3f', now + tonumber(number)))
    redis.call('EXPIRE', state, math.ceil(tonumber(number)) + 3600)
    is_ours = false
  elseif act == 'done' then
    redis.call('HDEL', key('taken'), tag)
    leave_flight(ARGV[i + 5], where, tag)
    is_ours = false
  elseif act == 'stale' and redis.call('ZSCORE', KEYS[2], tag) ~= number then
    is_ours = false  -- it was overdue with this score a moment ago; now it is another worker's hold
  elseif act ~= 'also' then  -- that one goes with the message before it
    redis.call('ZREM', KEYS[2], tag)
    is_ours = redis.call('HDEL', KEYS[1], tag) == 1
    q, lane, place = leave(tag)
  end
  if is_ours and (act == 'next' or act == 'stale' or act == 'also') then
    if q and act ~= 'also' then
      enter(q, choose(lane, string.match(lane, '^([^/]*/[^/]*)/') or ''), place, value)
    else
      redis.call('RPUSH', where, value)
    end
    wake(ARGV[i + 5])
  elseif is_ours and act == 'park' then
    redis.call('ZADD', where, now + tonumber(number), value)
  end
end
