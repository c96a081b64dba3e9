-- Notes a lane's limit, or that it has none any more.
local function set_limit(q, lane, rate, burst)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'rate', 'burst')
  if (s[1] or '') == rate and (s[2] or '') == burst then return end
  -- What it owes by the old limit is forgotten.
  redis.call('HDEL', state, 'rate', 'burst', 'tat', 'due')
  if rate ~= '' then redis.call('HSET', state, 'rate', rate, 'burst', burst) end
  redis.call('EXPIRE', state, {STATE_KEPT_S})
  if redis.call('ZSCORE', key('later.' .. q), lane) then line_up(q, lane, 1) end
end
