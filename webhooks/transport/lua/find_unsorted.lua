#!lua flags=allow-oom
-- Locks sorting and reads messages to sort.
-- KEYS: the lists of queues with lanes. ARGV: prefix, worker, milliseconds of the lock, maximum number of messages, and
-- of newest ones if there are many more. Returns, for the first list with messages: its number, the number of newest
-- messages, Redis's time, the newest messages, the oldest messages with the oldest last.
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
