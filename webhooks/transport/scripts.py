"""What runs inside Redis: the names of our keys, and the scripts, each of which does one step as a whole.

No script decodes a message: Lua's JSON would change numbers and empty arrays, so what is stored is what came, byte for
byte. Most have the flag ``allow-oom``: they only move what Redis holds already, and a full Redis must be able to drain.
"""

from hashlib import sha1

#: A list. Each entry is JSON: ``queue``, ``found_at`` (seconds since 1970, Redis's clock) and ``payload_base64``, the
#: bytes as they were found. `LPOP` gives the newest.
UNREADABLE_KEY = "webhooks.unreadable"
PARKED_KEY = "webhooks.parked.{}"
WAKE_KEY = "webhooks.wake.{}"
RESTORING_KEY = "webhooks.restoring"


_NOW = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
"""

_WAKE = """
local function wake(key)
  if redis.call('LLEN', key) == 0 then
    redis.call('LPUSH', key, '1')
    redis.call('PEXPIRE', key, 1000)
  end
end
"""

#: KEYS: the list, its queue's parked set, its queue's wake-up. ARGV: message, priority, seconds to wait or "".
PUT = f"""#!lua
{_NOW}{_WAKE}
if ARGV[3] == '' then
  redis.call('LPUSH', KEYS[1], ARGV[1])
  wake(KEYS[3])
else
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[2] .. ':' .. ARGV[1])
end
"""

#: KEYS: unacked, unacked_index, parked set and wake-up of each queue, then the lists: all queues' of the first
#: priority, all of the next. ARGV: id of this take, most messages, messages of one queue in a row, number of queues, a
#: batch, what ends each queue's entry in unacked, then the priorities.
#: Returns the time, milliseconds until the next parked message is due or -1, then a queue's number and a message each.
TAKE = f"""#!lua flags=allow-oom
{_NOW}{_WAKE}
local id, most, row, queues = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local priorities = #ARGV - 5 - queues
local function list(priority, queue) return KEYS[2 + 2 * queues + (priority - 1) * queues + queue] end
local level = {{}}
for p = 1, priorities do level[ARGV[5 + queues + p]] = p end

local next_due = -1
for q = 1, queues do
  local parked = KEYS[1 + 2 * q]
  local due = redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, ARGV[5])
  for _, member in ipairs(due) do
    local colon = string.find(member, ':', 1, true)
    local priority = level[string.sub(member, 1, colon - 1)] or 1
    redis.call('LPUSH', list(priority, q), string.sub(member, colon + 1))
  end
  if #due > 0 then redis.call('ZREM', parked, unpack(due)) end
  local first = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait = math.max(0, math.ceil((tonumber(first[2]) - now) * 1000))
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end

local reply, taken = {{tostring(now), next_due}}, 0
for p = 1, priorities do
  local found = true
  while found and taken < most do
    found = false
    for q = 1, queues do
      for _ = 1, row do
        local message = taken < most and redis.call('RPOP', list(p, q))
        if not message then break end
        found = true
        taken = taken + 1
        local tag = id .. ':' .. taken
        redis.call('HSET', KEYS[1], tag, '[' .. message .. ARGV[5 + q])
        redis.call('ZADD', KEYS[2], now, tag)
        reply[#reply + 1] = q
        reply[#reply + 1] = message
      end
    end
  end
end

if taken == most then
  for q = 1, queues do
    for p = 1, priorities do
      if redis.call('EXISTS', list(p, q)) == 1 then wake(KEYS[2 + 2 * q]) end
    end
  end
end
return reply
"""

#: KEYS: unacked, unacked_index. ARGV, for each message: tag, what to do ("ack", "next", "stale", "also", "park",
#: "aside"), a number, key, value, wake-up. What is to be done besides removing the note is done only by who removed it.
SETTLE = f"""#!lua flags=allow-oom
{_WAKE}
local is_ours = false
for i = 1, #ARGV, 6 do
  local tag, act, number, key, value = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if act == 'stale' and redis.call('ZSCORE', KEYS[2], tag) ~= number then
    is_ours = false  -- it was overdue with this score a moment ago; now it is another worker's hold
  elseif act ~= 'also' then  -- that one goes with the message before it
    redis.call('ZREM', KEYS[2], tag)
    is_ours = redis.call('HDEL', KEYS[1], tag) == 1
  end
  if is_ours and (act == 'next' or act == 'stale' or act == 'also') then
    redis.call('RPUSH', key, value)
    wake(ARGV[i + 5])
  elseif is_ours and act == 'park' then
    redis.call('ZADD', key, number, value)
  elseif is_ours and act == 'aside' then
    redis.call('LPUSH', key, value)
  end
end
"""

#: KEYS: unacked, unacked_index, restoring. ARGV: visibility timeout in seconds, milliseconds for which no other worker
#: looks, or 0 to go on looking, a batch. Returns the time, then tag, score and entry of each overdue message, the
#: oldest first.
OVERDUE = f"""#!lua flags=allow-oom
{_NOW}
local reply = {{tostring(now)}}
if ARGV[2] ~= '0' and not redis.call('SET', KEYS[3], '1', 'NX', 'PX', ARGV[2]) then return reply end
-- Redis may have evicted the index alone: what it does not have is noted again, as if it were taken now.
if redis.call('HLEN', KEYS[1]) > redis.call('ZCARD', KEYS[2]) then
  for _, tag in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('ZADD', KEYS[2], 'NX', now, tag) end
end
local before = now - tonumber(ARGV[1])
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'WITHSCORES', 'LIMIT', 0, ARGV[3])
for i = 1, #found, 2 do
  local entry = redis.call('HGET', KEYS[1], found[i])
  if entry then
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
    reply[#reply + 1] = entry
  else
    redis.call('ZREM', KEYS[2], found[i])
  end
end
return reply
"""

#: What Redis knows each script by.
SHAS = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (PUT, TAKE, SETTLE, OVERDUE)}
