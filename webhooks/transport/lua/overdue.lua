#!lua flags=allow-oom
-- Finds messages whose holder's lease has lapsed or that exceed the visibility timeout; ends admitted attempts of
-- lapsed leases. KEYS: unacked, unacked_index, restoring. ARGV: prefix, visibility timeout in seconds, milliseconds of
-- the lock, or 0 to continue, batch size, process token. Returns the time, then tag, score and entry per message, the
-- oldest first.
--#include now
--#include wake
--#include lanes
--#include leases
--#include leave
--#include lock
local reply, batch = {tostring(now)}, tonumber(ARGV[4])
if ARGV[3] ~= '0' and not take_lock(KEYS[3], tostring(now), tonumber(ARGV[3])) then return reply end
-- Redis may have evicted only the index: its missing entries are added as if taken now.
if redis.call('HLEN', KEYS[1]) > redis.call('ZCARD', KEYS[2]) then
  for _, tag in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('ZADD', KEYS[2], 'NX', now, tag) end
end
local before, lapsed, is_any_lapsed = now - tonumber(ARGV[2]), {}, false
for _, token in ipairs(find_lapsed(ARGV[5])) do
  lapsed[token] = true
  is_any_lapsed = true
end
local function is_lapsed(tag)
  local token = holder_of(tag)
  return token and lapsed[token]
end
-- A lapsed lease requires a search through all messages.
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
  -- A lapsed lease is deleted once its process holds nothing.
  for token in pairs(#reply == 1 and lapsed or {}) do
    redis.call('ZREM', key('leases'), token)
    redis.call('HDEL', key('leases.since'), token)
  end
end
return reply
