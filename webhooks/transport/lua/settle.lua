#!lua flags=allow-oom
-- KEYS: unacked, unacked_index. ARGV: prefix, number of acks, their tags, then six values per other settlement:
--   tag, "next" or "stale" or "also" or "park", number, key, value, wake-up: ends a hold. "next" requeues the message, to
--     its position if it came from a lane; "stale" likewise if its score is still `number`; "also" adds one more copy;
--     "park" parks it for `number` seconds. Only the script that removed the tag does so.
--   lane, "report", milliseconds, verdict, "", queue: the result of an attempt
--   lane, "limit", rate and burst or "", "", queue
--   lane, "hold", seconds, "", "", queue
--   tag, "done", "", lane, "", queue: the end of an attempt that `ADMIT` admitted
--   id of a take, "over": if it comes late, it takes nothing
--#include now
--#include wake
--#include lanes
--#include leave
--#include limit
--#include report
local function note_over(id) redis.call('SET', key('over.' .. id), 1, 'EX', {OVER_KEPT_S}) end
local is_ours = false
local q, lane, position
local acks, ended, done = tonumber(ARGV[2]), {}, {}
-- First, so that nothing requeues a message that is acked.
if acks > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV, 3, 2 + acks))
  redis.call('HDEL', KEYS[1], unpack(ARGV, 3, 2 + acks))
end
for i = 3, 2 + acks do ended[#ended + 1] = ARGV[i] end
for i = 3 + acks, #ARGV, 6 do
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
    ended[#ended + 1] = tag
    done[tag] = ARGV[i + 5] .. '\n' .. where
    is_ours = false
  elseif act == 'over' then
    note_over(tag)
    is_ours = false
  elseif act == 'stale' and redis.call('ZSCORE', KEYS[2], tag) ~= number then
    is_ours = false  -- its holder has settled it since
  elseif act ~= 'also' then  -- "also" keeps the `is_ours` of the settlement before it
    redis.call('ZREM', KEYS[2], tag)
    is_ours = redis.call('HDEL', KEYS[1], tag) == 1
    q, lane, position = leave(tag)
  end
  if is_ours and (act == 'next' or act == 'stale' or act == 'also') then
    if q and act ~= 'also' then
      enter(q, choose(lane, string.match(lane, '^([^/]*/[^/]*)/') or ''), position, value)
    else
      redis.call('RPUSH', where, value)
    end
    wake(ARGV[i + 5])
  elseif is_ours and act == 'park' then
    redis.call('ZADD', where, now + tonumber(number), value)
  end
end
save_reports()
if #ended > 0 then
  local by_lane = {}
  for i, where in ipairs(redis.call('HMGET', key('taken'), unpack(ended))) do
    local tag = ended[i]
    -- The admission of an attempt, sent over a connection that died, may still come.
    if done[tag] and not where then note_over(tag) end
    local place = done[tag] or where and string.match(where, '^[^\n]*\n[^\n]*')
    if place then add(by_lane, place, tag) end
  end
  redis.call('HDEL', key('taken'), unpack(ended))
  leave_flights(by_lane)
end
