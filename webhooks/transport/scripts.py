"""What runs inside Redis: the names of our keys, and the scripts, each of which does one step as a whole.

No script decodes a message: Lua's JSON would change numbers and empty arrays, so what is stored is what came, byte for
byte. Most have the flag ``allow-oom``: they only move what Redis holds already, and a full Redis must be able to drain.
"""

from hashlib import sha1

from webhooks.transport.lanes import (
    FIRST_SHARE,
    LUA,
    LUA_ALIVE,
    LUA_LEASES,
    LUA_LEAVE,
    LUA_LIMIT,
    LUA_REPORT,
    LUA_TAKE,
    OTHERS,
    SERIAL,
    SLOW_S,
)

PARKED_KEY = "webhooks.parked.{}"
WAKE_KEY = "webhooks.wake.{}"
RESTORING_KEY = "webhooks.restoring"


#: Messages put into lanes in one turn of the worker's event loop: what it takes must not hold up the rest of it. So few
#: are in their lanes soon.
FEW = 250
#: Seconds that an attempt may be in hand before nobody waits here for it to end.
_STUCK_S = 0.5
#: Seconds that the messages before an attempt may take, by what its endpoint takes on the average, before the attempt
#: gets a message as well; and that average where it is not known.
_SOON_S = 0.5
_MEAN_S = 0.1

#: `wall`, Redis's clock, and `now`, by which all here wait: the same, but never going back. Needs ARGV[1], the user's
#: prefix.
_NOW = """
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
"""

_WAKE = """
local function wake(key)
  if redis.call('LLEN', key) == 0 then
    redis.call('LPUSH', key, '1')
    redis.call('PEXPIRE', key, 1000)
  end
end
"""

#: KEYS: the list, and all lists out of which messages come into the same lanes, if those keep an order. ARGV: prefix,
#: queue, the one in whose lanes its messages stand, priority, then for each message: itself, seconds to wait or "",
#: lane or "", what the lane is a part of or "", its rate limit and burst or "", and "1" if it comes first in its lane.
#: While there are messages of plain producers that are in no lane yet, it stands in line behind them: always if its
#: lane is serial, and if they are few, as nobody may have said yet that it is.
PUT = f"""#!lua
{_NOW}{_WAKE}{LUA}{LUA_LIMIT}
local q, is_taken_soon = ARGV[2], false
local unsorted, length
for k = 2, #KEYS do
  local found = redis.call('LLEN', KEYS[k])
  if found > 0 then unsorted, length = KEYS[k], found end
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
    elseif unsorted and lane ~= '{OTHERS}' and (length < {FEW} or is_ordered(whole)) then
      redis.call('LPUSH', unsorted, message)
    else
      lane = choose(lane, whole)
      local first = ARGV[i + 6] == '1'
        and redis.call('ZRANGE', key('lane.' .. to .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
      enter(to, lane, first and tonumber(first) - 1 or next_place(), message)
    end
  end
end
if is_taken_soon then wake(key('wake.' .. ARGV[3])) end
"""

#: KEYS: unacked. ARGV: prefix, queue, messages of the asking worker that are in hand and not yet begun, the longest
#: that a message is in hand, then for each attempt that may be made without a message of its own: tag, lane, rate limit
#: and burst or "". Returns for each one 1 if it may be made now, and counts it among those in hand; 2 if that is to be
#: expected at any moment, as its endpoint is quick, or nobody knows, no attempt has been in hand for long, and few wait
#: before it; else 0.
ADMIT = f"""#!lua flags=allow-oom
{_NOW}{LUA}{LUA_LIMIT}
local q, held_s = ARGV[2], tonumber(ARGV[4])
local threads = tonumber(redis.call('GET', key('threads')) or '0')
local free = math.max(threads - redis.call('HLEN', KEYS[1]), 0) + tonumber(ARGV[3])
{LUA_TAKE}
local reply = {{}}
for i = 5, #ARGV, 4 do
  local tag, lane = ARGV[i], ARGV[i + 1]
  set_limit(q, lane, ARGV[i + 2], ARGV[i + 3])
  local answer = 0
  -- Those that wait in the lane came before.
  local waiting = redis.call('ZCARD', key('lane.' .. q .. '/' .. lane))
  if waiting == 0 and not why_not(q, lane, true) then
    note_flight(q, lane, tag)
    redis.call('HSET', key('taken'), tag, q .. '\\n' .. lane .. '\\n')  -- so it can be found if its process dies
    free = free - 1
    answer = 1
  else
    local s = redis.call('HMGET', key('state.' .. q .. '/' .. lane), 'held', 'rate', 'mean', 'good', 'share')
    local is_slow = s[3] and (not s[4] or tonumber(s[3]) >= {SLOW_S})
    local oldest = redis.call('ZRANGE', key('flight.' .. q .. '/' .. lane), 0, 0, 'WITHSCORES')[2]
    local is_stuck = oldest and now - tonumber(oldest) > {_STUCK_S}
    local wait_s = waiting * (tonumber(s[3]) or {_MEAN_S}) / (tonumber(s[5]) or {FIRST_SHARE})
    local is_held = tonumber(s[1] or '0') > now
    if not is_held and not s[2] and not is_slow and not is_stuck and wait_s < {_SOON_S} then answer = 2 end
  end
  reply[#reply + 1] = answer
end
return reply
"""

#: KEYS: unacked, unacked_index, parked set and wake-up of each queue, then the lists: all queues' of the first
#: priority, all of the next. ARGV: prefix, id of this take, most messages, threads of this worker that have nothing in
#: hand, messages of one queue in a row, number of queues, a batch, the longest that a message is in hand, then for each
#: queue its name, what ends its entry in unacked, and "" or "lanes" or "bounded", then the priorities.
#: A process whose lease has lapsed renews it here: what it takes now is not to be taken from it.
#: Returns Redis's time, milliseconds until a parked message or a lane is due or -1, how many messages of queues with
#: lanes are in none yet, then for each message its queue's number, lane or "", and itself.
TAKE = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}{LUA}{LUA_LEASES}
local id, most, room, row, queues = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local batch, held_s = ARGV[7], tonumber(ARGV[8])
local name, ending, kind = {{}}, {{}}, {{}}
for q = 1, queues do name[q], ending[q], kind[q] = ARGV[6 + 3 * q], ARGV[7 + 3 * q], ARGV[8 + 3 * q] end
local priorities = #ARGV - 8 - 3 * queues
local function list(priority, queue) return KEYS[2 + 2 * queues + (priority - 1) * queues + queue] end
local level = {{}}
for p = 1, priorities do level[ARGV[8 + 3 * queues + p]] = p end
-- What a dead worker holds counts until it comes back, so this worker's own room is the least that is free.
local threads = tonumber(redis.call('GET', key('threads')) or '0')
local free = math.max(threads - redis.call('HLEN', KEYS[1]), room)
{LUA_TAKE}
local holder = holder_of(id)
local lease = holder and redis.call('ZSCORE', key('leases'), holder)
if lease and tonumber(lease) <= now then renew(holder) end

local next_due = -1
local function note_due(at)
  local wait = math.max(0, math.ceil((tonumber(at) - now) * 1000))
  if next_due < 0 or wait < next_due then next_due = wait end
end

local unsorted = 0
for q = 1, queues do
  local parked = KEYS[1 + 2 * q]
  local due = redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, batch)
  for _, member in ipairs(due) do
    local head, message = string.match(member, '^([^:]*):(.*)$')
    local priority, lane = string.match(head, '^([^@]*)@(.*)$')
    if lane and kind[q] ~= '' then
      enter(name[q], lane, next_place(), message)
    else
      redis.call('LPUSH', list(level[priority or head] or 1, q), message)
    end
  end
  if #due > 0 then redis.call('ZREM', parked, unpack(due)) end
  local first = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES')
  if first[2] then note_due(first[2]) end
  if kind[q] ~= '' then
    for _, lane in ipairs(redis.call('ZRANGEBYSCORE', key('later.' .. name[q]), '-inf', now, 'LIMIT', 0, batch)) do
      line_up(name[q], lane, 1)
    end
    for p = 1, priorities do unsorted = unsorted + redis.call('LLEN', list(p, q)) end
  end
end

local reply, taken = {{string.format('%.6f', wall), next_due, unsorted}}, 0
local function take(q, lane, place, message)
  taken = taken + 1
  free = free - 1
  local tag = id .. ':' .. taken
  redis.call('HSET', KEYS[1], tag, '[' .. message .. ending[q])
  redis.call('ZADD', KEYS[2], now, tag)
  if lane ~= '' then note(name[q], lane, place, tag, kind[q] == 'bounded') end
  reply[#reply + 1] = q
  reply[#reply + 1] = lane
  reply[#reply + 1] = message
end
for p = 1, priorities do
  local found = true
  while found and taken < most do
    found = false
    for q = 1, queues do
      for _ = 1, row do
        if taken == most then break end
        if kind[q] == '' then
          local message = redis.call('RPOP', list(p, q))
          if not message then break end
          found = true
          take(q, '', '', message)
        elseif p == 1 then
          local message, lane, place = take_in_turn(name[q], kind[q] == 'bounded')
          if not message then break end
          found = true
          take(q, lane, place, message)
        else
          break
        end
      end
    end
  end
end

for q = 1, queues do
  if kind[q] ~= '' then
    local first = redis.call('ZRANGE', key('later.' .. name[q]), 0, 0, 'WITHSCORES')
    if first[2] then note_due(first[2]) end
  end
end
if is_tired then next_due = 0 end
reply[2] = next_due
if taken == most then
  for q = 1, queues do
    local is_more = kind[q] ~= '' and redis.call('EXISTS', key('ring.' .. name[q])) == 1
    for p = 1, priorities do is_more = is_more or redis.call('EXISTS', list(p, q)) == 1 end
    if is_more then wake(KEYS[2 + 2 * q]) end
  end
end
return reply
"""

#: KEYS: unacked, unacked_index. ARGV: prefix, then for each message: tag, what to do ("ack", "next", "stale", "also",
#: "park"), a number, key, value, wake-up. What is to be done besides removing the note is done only by who
#: removed it. A message that came out of a lane goes back to its place there. Instead of a message, "report": what an
#: attempt tells of its endpoint; then the six are lane, "report", milliseconds, verdict, "", queue; "limit": lane,
#: "limit", rate and burst or "", "", queue; "hold": lane, "hold", seconds, "", "", queue; and "done", of what `ADMIT`
#: let go: tag, "done", "", lane, "", queue.
SETTLE = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}{LUA}{LUA_LEAVE}{LUA_LIMIT}{LUA_REPORT}
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
"""

#: KEYS: the lists of queues with lanes. ARGV: prefix, who asks, milliseconds for which nobody else sorts, how many
#: messages, and how many of the newest where there are many more. Returns, of the first list that has any, its number,
#: how many of the newest follow, Redis's time, these, and its oldest messages, the oldest last.
UNSORTED = f"""#!lua flags=allow-oom
{_NOW}{LUA}
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    if redis.call('GET', key('sorting')) ~= ARGV[2] then
      if not redis.call('SET', key('sorting'), ARGV[2], 'NX', 'PX', ARGV[3]) then return {{}} end
    end
    redis.call('PEXPIRE', key('sorting'), ARGV[3])
    local newest = 0
    if redis.call('LLEN', KEYS[i]) > 2 * (tonumber(ARGV[4]) + tonumber(ARGV[5])) then newest = tonumber(ARGV[5]) end
    local reply = {{i, newest, string.format('%.6f', wall)}}
    if newest > 0 then
      for _, message in ipairs(redis.call('LRANGE', KEYS[i], 0, newest - 1)) do reply[#reply + 1] = message end
    end
    for _, message in ipairs(redis.call('LRANGE', KEYS[i], -tonumber(ARGV[4]), -1)) do reply[#reply + 1] = message end
    return reply
  end
end
return {{}}
"""

#: KEYS: the list. ARGV: prefix, who sorts, queue, the one in whose lanes its messages stand, then for each message, the
#: oldest first: its SHA-1, lane, what that is a part of, how to file it ("lane" or "park"), the seconds that it waits,
#: and what stands for it ("" for itself). Stops at one that is not as it was.
#: Among the newest, "newest": instead of the SHA-1 the message. It gets a place behind all that are sorted in the next
#: ten minutes, as it came after them; where its lane is serial it is left for its turn.
SORT = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}{LUA}
if redis.call('GET', key('sorting')) ~= ARGV[2] then return 0 end
local q, sorted = ARGV[3], 0
local function sort_newest(message, lane, whole)
  if is_ordered(whole) then return end
  if redis.call('LREM', KEYS[1], 1, message) == 0 then return end
  local last = tonumber(redis.call('GET', key('place.newest')) or '0')
  local place = math.max(last + 1, math.floor((now + 600) * 1000000))
  redis.call('SET', key('place.newest'), string.format('%.0f', place), 'EX', 3600)
  enter(lanes_of(q, lane, ARGV[4]), lane, place, message)
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
      enter(lanes_of(q, lane, ARGV[4]), choose(lane, ARGV[i + 2]), next_place(), filed)
    else
      redis.call('ZADD', key('parked.' .. lanes_of(q, lane, ARGV[4])), now + tonumber(ARGV[i + 4]), filed)
    end
    sorted = sorted + 1
  end
end
if sorted > 0 then wake(key('wake.' .. ARGV[4])) end
redis.call('DEL', key('sorting'))
return sorted
"""

#: ARGV: prefix, what is to be one serial lane from now on, "1" or "0" for not any more, then names of queues.
SERIALIZE = f"""#!lua flags=allow-oom
{_NOW}{LUA}
local whole = ARGV[2]
if ARGV[3] == '0' then return redis.call('SREM', key('serial'), whole) end
redis.call('SADD', key('serial'), whole)
-- What is in hand of its parts counts as the one that may be, until all of it is back or done.
local taken = redis.call('HGETALL', key('taken'))
for i = 1, #taken, 2 do
  local q, lane, place = string.match(taken[i + 1], '^([^\\n]*)\\n([^\\n]*)\\n(.*)$')
  if lane and string.sub(lane, 1, #whole + 1) == whole .. '/' then
    local all = whole .. '{SERIAL}'
    redis.call('HSET', key('taken'), taken[i], q .. '\\n' .. all .. '\\n' .. place)
    redis.call('ZADD', key('flight.' .. q .. '/' .. all), now, taken[i])
    redis.call('EXPIRE', key('flight.' .. q .. '/' .. all), 86400)
  end
end
for i = 4, #ARGV do
  local q, all = ARGV[i], whole .. '{SERIAL}'
  for _, lane in ipairs(redis.call('SMEMBERS', key('lanes.' .. q))) do
    if string.sub(lane, 1, #whole + 1) == whole .. '/' then
      local line, dest = key('lane.' .. q .. '/' .. lane), key('lane.' .. q .. '/' .. all)
      redis.call('ZUNIONSTORE', dest, 2, dest, line)
      redis.call('DEL', line)
      redis.call('SREM', key('lanes.' .. q), lane)
      redis.call('ZREM', key('later.' .. q), lane)
      step_out(q, lane)
      redis.call('SADD', key('lanes.' .. q), all)
      line_up(q, all, 1)
    end
  end
end
return 1
"""

#: ARGV: prefix, queue, lanes. Returns for each one how many messages wait in it, how many are in hand, its share, and
#: for how many seconds the oldest one has waited, or "". Lines up those that were forgotten.
LOOK = f"""#!lua flags=allow-oom
{_NOW}{LUA}
local q, reply = ARGV[2], {{}}
for i = 3, #ARGV do
  local lane = ARGV[i]
  local line = key('lane.' .. q .. '/' .. lane)
  local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  if first[1] and not redis.call('ZSCORE', key('later.' .. q), lane) then
    redis.call('SADD', key('lanes.' .. q), lane)
    line_up(q, lane, 1)
  end
  reply[#reply + 1] = redis.call('ZCARD', line)
  reply[#reply + 1] = redis.call('ZCARD', key('flight.' .. q .. '/' .. lane))
  reply[#reply + 1] = tonumber(redis.call('HGET', key('state.' .. q .. '/' .. lane), 'share') or '{FIRST_SHARE}')
  reply[#reply + 1] = first[2] and string.format('%.6f', math.max(0, now - tonumber(first[2]) / 1000000)) or ''
end
return reply
"""

#: ARGV: prefix, queue, "1" to empty it. Returns how many messages are in its lanes. Lines up those that Redis forgot.
COUNT = f"""#!lua flags=allow-oom
{_NOW}{LUA}
local q, sum = ARGV[2], 0
for _, lane in ipairs(redis.call('SMEMBERS', key('lanes.' .. q))) do
  local line = key('lane.' .. q .. '/' .. lane)
  sum = sum + redis.call('ZCARD', line)
  if ARGV[3] == '1' then
    redis.call('DEL', line)
    redis.call('ZREM', key('later.' .. q), lane)
    step_out(q, lane)
  elseif not redis.call('ZSCORE', key('later.' .. q), lane) then
    line_up(q, lane, 1)
  end
end
if ARGV[3] == '1' then redis.call('DEL', key('lanes.' .. q)) end
return sum
"""

#: ARGV: prefix, who it is, threads, or 0 when it stops. Returns how many leases have lapsed.
ALIVE = f"""#!lua flags=allow-oom
{_NOW}{LUA}{LUA_ALIVE}
return redis.call('ZCOUNT', key('leases'), '-inf', now)
"""

#: ARGV: prefix, token of a process, "1" to renew its lease, "0" to end it.
LEASE = f"""#!lua flags=allow-oom
{_NOW}{LUA}{LUA_LEASES}
if ARGV[3] == '1' then
  renew(ARGV[2])
else
  redis.call('ZADD', key('leases'), 'XX', string.format('%.6f', now), ARGV[2])
end
"""

#: KEYS: unacked, unacked_index, restoring. ARGV: prefix, visibility timeout in seconds, milliseconds for which no other
#: worker looks, or 0 to go on looking, a batch, token of the process that asks. Returns the time, then tag, score and
#: entry of each message that its worker holds no more, the oldest first. What a process without a lease holds besides,
#: it leaves at once.
OVERDUE = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}{LUA}{LUA_LEASES}{LUA_LEAVE}
local reply, batch = {{tostring(now)}}, tonumber(ARGV[4])
if ARGV[3] ~= '0' and not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[3]) then return reply end
-- Redis may have evicted the index alone: what it does not have is noted again, as if it were taken now.
if redis.call('HLEN', KEYS[1]) > redis.call('ZCARD', KEYS[2]) then
  for _, tag in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('ZADD', KEYS[2], 'NX', now, tag) end
end
local before, lapsed, is_any_lapsed = now - tonumber(ARGV[2]), {{}}, false
for _, token in ipairs(find_lapsed(ARGV[5])) do
  lapsed[token] = true
  is_any_lapsed = true
end
local function is_lapsed(tag)
  local token = holder_of(tag)
  return token and lapsed[token]
end
-- All that is in hand is looked through where a process is dead, else what is overdue alone.
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', is_any_lapsed and '+inf' or before, 'WITHSCORES', 'LIMIT', 0,
  is_any_lapsed and -1 or batch)
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) <= before or is_lapsed(found[i]) then
    local entry = redis.call('HGET', KEYS[1], found[i])
    if not entry then
      redis.call('ZREM', KEYS[2], found[i])
    elseif #reply > 3 * batch then
      break
    else
      reply[#reply + 1] = found[i]
      reply[#reply + 1] = found[i + 1]
      reply[#reply + 1] = entry
    end
  end
end
if is_any_lapsed then
  for _, tag in ipairs(redis.call('HKEYS', key('taken'))) do
    if is_lapsed(tag) and redis.call('HEXISTS', KEYS[1], tag) == 0 then leave(tag) end
  end
  -- Forgotten once it holds nothing any more.
  for token in pairs(#reply == 1 and lapsed or {{}}) do
    redis.call('ZREM', key('leases'), token)
    redis.call('HDEL', key('leases.since'), token)
  end
end
return reply
"""

#: What Redis knows each script by.
SHAS = {
    script: sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (PUT, ADMIT, TAKE, SETTLE, OVERDUE, UNSORTED, SORT, SERIALIZE, LOOK, COUNT, ALIVE, LEASE)
}
