#!lua
-- Queues or parks messages.
-- KEYS: the list, then, for unbounded lanes, all lists whose messages are sorted into the same lanes; our own first, as
-- another application may consume the others. ARGV: prefix, queue, queue whose lanes it uses, priority, then per
-- message: text, delay in seconds or "", lane or "", parent or "", rate limit and burst or "", "1" if first in lane.
-- While plain producers' messages are not sorted yet, a message is put behind them if its lane is serial, or if they
-- are few, as they may be the reason why the lane will become serial.
--#include now
--#include wake
--#include lanes
--#include limit
local q, is_taken_soon = ARGV[2], false
local unsorted = 0
if #KEYS > 1 and redis.call('EXISTS', unpack(KEYS, 2)) > 0 then
  for k = 2, #KEYS do unsorted = unsorted + redis.call('LLEN', KEYS[k]) end
end
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
  local message, wait, lane, parent = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
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
    elseif unsorted > 0 and lane ~= '{OTHERS}' and (unsorted < {FEW} or is_ordered(parent)) then
      line_up_unsorted(message)
    else
      lane = choose(lane, parent)
      local first = ARGV[i + 6] == '1'
        and redis.call('ZRANGE', key('lane.' .. to .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
      enter(to, lane, first and tonumber(first) - 1 or next_position(), message)
    end
  end
end
save_position()
if is_taken_soon then wake(key('wake.' .. ARGV[3])) end
