#!lua flags=allow-oom
-- ARGV: prefix, process token, "1" to renew its lease, "0" to end it.
--#include now
--#include lanes
--#include leases
if ARGV[3] == '1' then
  renew(ARGV[2])
else
  redis.call('ZADD', key('leases'), 'XX', string.format('%.6f', now), ARGV[2])
end
