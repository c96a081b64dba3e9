#!lua flags=allow-oom
-- KEYS: the lists of queues with lanes. ARGV: prefix, who asks, milliseconds for which nobody else sorts, how many
-- messages, and how many of the newest where there are many more. Returns, of the first list that has any, its number,
-- how many of the newest follow, Redis's time, these, and its oldest messages, the oldest last.
--#include now
--#include lanes
--#include lock
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    if not take_lock(key('sorting'), ARGV[2], tonumber(ARGV[3])) then return {} end
    local newest = 0
    if redis.call('LLEN', KEYS[i]) > 2 * (tonumber(ARGV[4]) + tonumber(ARGV[5])) then newest = tonumber(ARGV[5]) end
    local reply = {i, newest, string.format('%.6f', wall)}
    if newest > 0 then
      for _, message in ipairs(redis.call('LRANGE', KEYS[i], 0, newest - 1)) do reply[#reply + 1] = message end
    end
    for _, message in ipairs(redis.call('LRANGE', KEYS[i], -tonumber(ARGV[4]), -1)) do reply[#reply + 1] = message end
    return reply
  end
end
return {}
