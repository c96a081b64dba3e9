#!lua
-- KEYS: the list, its queue's parked set, its queue's wake-up. ARGV: prefix, queue, priority, then for each message:
-- itself, seconds to wait or "", lane or "", what the lane is a part of or "", its rate limit and burst or "", and "1"
-- if it comes first in its lane.
--#include now
--#include wake
--#include lanes
--#include limit
local q, is_taken_soon = ARGV[2], false
for i = 4, #ARGV, 7 do
  local message, wait, lane = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if ARGV[i + 4] ~= '' then set_limit(q, lane, ARGV[i + 4], ARGV[i + 5]) end
  if wait ~= '' then
    local head = lane == '' and ARGV[3] or ARGV[3] .. '@' .. lane
    redis.call('ZADD', KEYS[2], now + tonumber(wait), head .. ':' .. message)
  else
    is_taken_soon = true
    if lane == '' then
      redis.call('LPUSH', KEYS[1], message)
    else
      lane = choose(lane, ARGV[i + 3])
      local first = ARGV[i + 6] == '1' and redis.call('ZRANGE', key('lane.' .. q .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
      enter(q, lane, first and tonumber(first) - 1 or next_place(), message)
    end
  end
end
if is_taken_soon then wake(KEYS[3]) end
