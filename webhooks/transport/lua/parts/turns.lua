-- Needs `free`, the idle threads of all workers; `holder` and `slots`, the calling process's token and threads;
-- `held_s`, the maximum seconds in flight. A lane's state is read once; its flights are written by `save_flights`.

-- Number of slow tags of this process, by queue.
local slow_tags = {}

-- Returns whether the process uses all threads that slow lanes may use: a quarter, rounded down, is for others.
local function is_crowded(q)
  if not slow_tags[q] then
    redis.call('ZREMRANGEBYSCORE', slow_key(q, holder), '-inf', now - held_s)
    slow_tags[q] = redis.call('ZCARD', slow_key(q, holder))
  end
  return slow_tags[q] >= math.ceil(slots * 3 / 4)
end

local function read_state(l)
  local s = redis.call('HMGET', l.state, 'held', 'rate', 'burst', 'tat', 'due', 'share', 'mean', 'good', 'peak', 'fitted')
  l.held, l.rate, l.burst = tonumber(s[1] or '0'), s[2] or '', s[3] or ''
  l.tat, l.due, l.window, l.mean = tonumber(s[4] or '0'), tonumber(s[5]), tonumber(s[6]), tonumber(s[7])
  l.is_slow = l.is_bounded and (not s[8] or (l.mean or 0) >= {SLOW_S})
  l.is_good, l.peak, l.is_kept = s[8], tonumber(s[9]) or 0, s[10]
end

-- Lanes in the order in which they were seen, and by name.
local seen, by_name = {}, {}

local function look_at(q, lane, has_bounds)
  local name = q .. '/' .. lane
  local l = by_name[name]
  if l then return l end
  l = {q = q, lane = lane, line = key('lane.' .. name), state = key('state.' .. name), flight = key('flight.' .. name)}
  l.is_serial = string.sub(lane, -1) == '{SERIAL}'
  l.is_bounded = has_bounds and not l.is_serial and lane ~= '{OTHERS}'
  l.waiting, l.taken, l.tags = redis.call('ZCARD', l.line), 0, {}
  if l.is_serial or l.is_bounded then
    redis.call('ZREMRANGEBYSCORE', l.flight, '-inf', now - held_s)
    l.in_flight = redis.call('ZCARD', l.flight)
  end
  read_state(l)
  by_name[name], seen[#seen + 1] = l, l
  return l
end

-- Returns nil if a lane may send a message now, else the time of the next check.
local function why_not(l)
  if l.held > now then return l.held end
  local rate, base = tonumber(l.rate) or 0, nil
  if rate > 0 then
    local burst = tonumber(l.burst) or 1
    local tat = math.min(l.tat, now + burst / rate)
    local due = tat - (burst - 1) / rate
    if due > now then
      l.due = due
      redis.call('HSET', l.state, 'due', string.format('%.6f', due))
      return due
    end
    -- A lane that waited for its due time counts from that time, not from this check.
    base = math.max(tat, l.due and math.max(l.due, now - 0.25) or now)
  end
  if l.in_flight then
    local limit = l.is_serial and 1 or math.min({QUICK_FACTOR} * free, l.window or {FIRST_WINDOW})
    -- The end of one of its messages gives it a turn earlier.
    if l.in_flight >= limit then return now + {LOOK_AGAIN_S} end
    if l.is_slow and is_crowded(l.q) then
      return now + {SLOW_LOOK_AGAIN_S} + redis.call('ZCARD', key('later.' .. l.q)) / {LANES_LOOKED_AT_PER_S}
    end
  end
  if base then
    l.tat, l.due = base + 1 / rate, nil
    redis.call('HSET', l.state, 'tat', string.format('%.6f', l.tat))
    redis.call('HDEL', l.state, 'due')
  end
end

-- Adds a tag to a lane's messages in flight, if they are counted.
local function note_flight(l, tag)
  if not l.in_flight then return end
  l.in_flight = l.in_flight + 1
  l.tags[#l.tags + 1] = now
  l.tags[#l.tags + 1] = tag
  if l.is_slow then slow_tags[l.q] = slow_tags[l.q] + 1 end
end

local function save_flights()
  for _, l in ipairs(seen) do
    if #l.tags > 0 then
      call_many('ZADD', l.flight, l.tags)
      redis.call('EXPIRE', l.flight, math.ceil(held_s))
      if l.is_slow then
        call_many('ZADD', slow_key(l.q, holder), l.tags)
        redis.call('EXPIRE', slow_key(l.q, holder), math.ceil(held_s))
      end
      if l.in_flight > l.peak then
        redis.call('HSET', l.state, 'peak', l.in_flight)
        if not l.is_kept then redis.call('EXPIRE', l.state, {STATE_KEPT_S}) end
      end
    end
  end
end
