-- Sets or removes a lane's rate limit.
local function set_limit(q, lane, rate, burst)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'rate', 'burst', 'tat')
  if (s[1] or '') == rate and (s[2] or '') == burst then return end
  redis.call('HDEL', state, 'rate', 'burst', 'due')
  if rate ~= '' then
    redis.call('HSET', state, 'rate', rate, 'burst', burst)
    if s[3] then
      -- One attempt may be made at the earlier of the old limit's time and the new limit's interval. Workers learn of a
      -- change one after the other; however often the limit changes, no attempt comes too early.
      local due = tonumber(s[3]) - (s[1] and ((tonumber(s[2]) or 1) - 1) / tonumber(s[1]) or 0)
      due = math.max(now, math.min(due, now + 1 / tonumber(rate)))
      redis.call('HSET', state, 'tat', string.format('%.6f', due + (tonumber(burst) - 1) / tonumber(rate)))
    end
  end
  redis.call('EXPIRE', state, {STATE_KEPT_S})
  if redis.call('ZSCORE', key('later.' .. q), lane) then line_up(q, lane, 1) end
end
