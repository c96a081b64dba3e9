#!lua flags=allow-oom
-- Moves messages from a list into lanes.
-- KEYS: the list. ARGV: prefix, worker, queue, queue whose lanes it uses, then per message, the oldest first: SHA-1,
-- lane, parent, "lane" or "park", delay in seconds, replacement or "". Stops at a message that has changed.
-- One of the newest has the message instead of the SHA-1, and "newest". It gets a position behind all that are sorted
-- in the next ten minutes. If its lane is serial, it is skipped.
--#include now
--#include wake
--#include lanes
--#include lock
if not has_lock(key('sorting'), ARGV[2]) then return 0 end
local q, sorted = ARGV[3], 0
local function sort_newest(message, lane, parent)
  if is_ordered(parent) then return end
  if redis.call('LREM', KEYS[1], 1, message) == 0 then return end
  local last = tonumber(redis.call('GET', key('place.newest')) or '0')
  local position = math.max(last + 1, math.floor((now + 600) * 1000000))
  redis.call('SET', key('place.newest'), string.format('%.0f', position), 'EX', 3600)
  enter(lanes_of(q, lane, ARGV[4]), lane, position, message)
end
for i = 5, #ARGV, 6 do
  local message
  if ARGV[i + 3] == 'newest' then
    sort_newest(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  else
    message = redis.call('RPOP', KEYS[1])
    if not message then break end
  end
  if message then
    if redis.sha1hex(message) ~= ARGV[i] then
      redis.call('RPUSH', KEYS[1], message)
      break
    end
    local lane, act, filed = ARGV[i + 1], ARGV[i + 3], ARGV[i + 5]
    if filed == '' then filed = message end
    if act == 'lane' then
      enter(lanes_of(q, lane, ARGV[4]), choose(lane, ARGV[i + 2]), next_position(), filed)
    else
      redis.call('ZADD', key('parked.' .. lanes_of(q, lane, ARGV[4])), now + tonumber(ARGV[i + 4]), filed)
    end
    sorted = sorted + 1
  end
end
save_position()
if sorted > 0 then wake(key('wake.' .. ARGV[4])) end
redis.call('DEL', key('sorting'))
return sorted
