-- Updates windows and mean durations of lanes after attempts.
local reported, in_order = {}, {}

local function read_reported(name)
  local state = key('state.' .. name)
  local s = redis.call('HMGET', state, 'share', 'mean', 'peak', 'fitted')
  local r = {
    state = state, window = tonumber(s[1]) or {FIRST_WINDOW}, mean = tonumber(s[2]), peak = tonumber(s[3]) or 0,
    in_flight = redis.call('ZCARD', key('flight.' .. name)),
  }
  r.is_fitted = not s[4] or now - tonumber(s[4]) > {FIT_EVERY_S}
  reported[name] = r
  in_order[#in_order + 1] = r
  return r
end

-- Reports one attempt: milliseconds or "", "good", "bad" or "". To be called before its flight ends.
local function report(q, lane, ms, verdict)
  local name = q .. '/' .. lane
  local r = reported[name] or read_reported(name)
  if ms ~= '' then
    local seconds = tonumber(ms) / 1000
    r.mean = r.mean and 0.8 * r.mean + 0.2 * seconds or seconds
  end
  if verdict == 'good' then
    if r.in_flight >= r.window then r.window = r.window + 1 end
  elseif verdict == 'bad' then
    r.window = math.max(1, math.floor(r.window / 2))
  end
  if verdict ~= '' then r.verdict = verdict end
end

local function save_reports()
  for _, r in ipairs(in_order) do
    local changes = {'share', r.window}
    local function set(name, value) changes[#changes + 1] = name; changes[#changes + 1] = value end
    if r.is_fitted then
      -- Lack of messages does not shrink a window below its first size.
      if r.window > {FIRST_WINDOW} then changes[2] = math.min(r.window, math.max({FIRST_WINDOW}, 2 * r.peak)) end
      set('fitted', string.format('%.3f', now))
      set('peak', r.in_flight)
    end
    if r.mean then set('mean', string.format('%.4f', r.mean)) end
    if r.verdict == 'good' then set('good', 1) end
    if r.verdict == 'bad' then redis.call('HDEL', r.state, 'good') end
    redis.call('HSET', r.state, unpack(changes))
    if r.is_fitted then redis.call('EXPIRE', r.state, {STATE_KEPT_S}) end
  end
end
