-- Updates a lane's window and mean duration after an attempt: milliseconds or "", "good", "bad" or "".
local function report(q, lane, ms, verdict)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'share', 'mean', 'peak', 'fitted')
  local window, in_flight = tonumber(s[1]) or {FIRST_WINDOW}, redis.call('ZCARD', key('flight.' .. q .. '/' .. lane))
  local changes = {}
  local function set(name, value) changes[#changes + 1] = name; changes[#changes + 1] = value end
  if ms ~= '' then
    local seconds = tonumber(ms) / 1000
    set('mean', string.format('%.4f', s[2] and 0.8 * tonumber(s[2]) + 0.2 * seconds or seconds))
  end
  if verdict == 'good' then
    set('good', 1)
    if in_flight >= window then window = window + 1 end
  elseif verdict == 'bad' then
    window = math.max(1, math.floor(window / 2))
    redis.call('HDEL', state, 'good')
  end
  local fitted = tonumber(s[4])
  if not fitted or now - fitted > {FIT_EVERY_S} then
    local peak = tonumber(s[3]) or 0
    if window > {FIRST_WINDOW} then window = math.min(window, math.max({FIRST_WINDOW}, 2 * peak)) end
    set('fitted', string.format('%.3f', now))
    set('peak', in_flight)
  end
  set('share', window)
  redis.call('HSET', state, unpack(changes))
  redis.call('EXPIRE', state, {STATE_KEPT_S})
end
