-- Leases: see `holder.py`. Needs `now` and `lanes`.
local function renew(token)
  local before = redis.call('ZSCORE', key('leases'), token)
  if not before or tonumber(before) - now < {RENEWED_IN_TIME_S} then
    redis.call('HSET', key('leases.since'), token, string.format('%.6f', now))
  end
  redis.call('ZADD', key('leases'), string.format('%.6f', now + {LEASE_S}), token)
end

-- Returns the tokens of lapsed leases, if the calling process may declare them lapsed.
local function find_lapsed(witness)
  local before = redis.call('ZSCORE', key('leases'), witness)
  local since = redis.call('HGET', key('leases.since'), witness)
  if not before or tonumber(before) - now < {RENEWED_IN_TIME_S} then return {} end
  if not since or now - tonumber(since) < {WITNESS_AFTER_S} then return {} end
  return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now)
end
