#!lua
-- KEYS: the list, and all lists out of which messages come into the same lanes, if those keep an order; of these first
-- our own, as another application may take from the others. ARGV: prefix, queue, the one in whose lanes its messages
-- stand, priority, then for each message: itself, seconds to wait or "", lane or "", what the lane is a part of or "",
-- its rate limit and burst or "", and "1" if it comes first in its lane.
-- While there are messages of plain producers that are in no lane yet, it stands in one line behind them: always if
-- its lane is serial, and if they are few, as nobody may have said yet that it is.
--#include now
--#include wake
--#include lanes
--#include limit
local q, is_taken_soon = ARGV[2], false
local unsorted = 0
for k = 2, #KEYS do unsorted = unsorted + redis.call('LLEN', KEYS[k]) end
local function line_up_unsorted(message)
  for k = 3, #KEYS do
    if redis.call('EXISTS', KEYS[k]) == 1 and redis.call('EXISTS', KEYS[2]) == 0 then
      redis.call('RENAME', KEYS[k], KEYS[2])
    end
    while redis.call('RPOPLPUSH', KEYS[k], KEYS[2]) do end
  end
  redis.call('LPUSH', KEYS[2], message)
end
for i = 5, #ARGV, 7 do
  local message, wait, lane, whole = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local to = lanes_of(q, lane, ARGV[3])
  if ARGV[i + 4] ~= '' and redis.call('HEXISTS', key('state.' .. to .. '/' .. lane), 'rate') == 0 then
    set_limit(to, lane, ARGV[i + 4], ARGV[i + 5])
  end
  if wait ~= '' then
    local head = lane == '' and ARGV[4] or ARGV[4] .. '@' .. lane
    redis.call('ZADD', key('parked.' .. to), now + tonumber(wait), head .. ':' .. message)
  else
    is_taken_soon = true
    if lane == '' then
      redis.call('LPUSH', KEYS[1], message)
    elseif unsorted > 0 and lane ~= '{OTHERS}' and (unsorted < {FEW} or is_ordered(whole)) then
      line_up_unsorted(message)
    else
      lane = choose(lane, whole)
      local first = ARGV[i + 6] == '1'
        and redis.call('ZRANGE', key('lane.' .. to .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
      enter(to, lane, first and tonumber(first) - 1 or next_place(), message)
    end
  end
end
if is_taken_soon then wake(key('wake.' .. ARGV[3])) end
