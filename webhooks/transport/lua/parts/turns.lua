-- Needs `free`, the idle threads of all workers; `holder` and `slots`, the calling process's token and threads;
-- `held_s`, the maximum seconds in flight.
-- Whether the last examined lane is slow; whether the search ended at its limit.
local is_slow, is_tired = false, false

-- Returns whether the process uses all threads that slow lanes may use: a quarter, rounded down, is for others.
local function is_crowded(q)
  local slow = slow_key(q, holder)
  redis.call('ZREMRANGEBYSCORE', slow, '-inf', now - held_s)
  return redis.call('ZCARD', slow) >= math.ceil(slots * 3 / 4)
end

-- Returns nil if a lane may send a message now, else the time of the next check.
local function why_not(q, lane, is_bounded)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'held', 'rate', 'burst', 'tat', 'due', 'share', 'mean', 'good', 'peak')
  local held, rate = tonumber(s[1] or '0'), tonumber(s[2] or '0')
  if held > now then return held end
  local base
  is_slow = false
  if rate > 0 then
    local tat = math.min(tonumber(s[4] or '0'), now + (tonumber(s[3]) or 1) / rate)
    local due = tat - ((tonumber(s[3]) or 1) - 1) / rate
    if due > now then
      redis.call('HSET', state, 'due', string.format('%.6f', due))
      return due
    end
    -- A lane that waited for its due time counts from that time, not from this check.
    base = math.max(tat, s[5] and math.max(tonumber(s[5]), now - 0.25) or now)
  end
  local is_serial = string.sub(lane, -1) == '{SERIAL}'
  if is_serial or is_bounded and lane ~= '{OTHERS}' then
    local flight = key('flight.' .. q .. '/' .. lane)
    redis.call('ZREMRANGEBYSCORE', flight, '-inf', now - held_s)
    local in_flight, limit = redis.call('ZCARD', flight), 1
    if not is_serial then
      is_slow = not s[8] or (tonumber(s[7]) or 0) >= {SLOW_S}
      limit = math.min({QUICK_FACTOR} * free, tonumber(s[6]) or {FIRST_WINDOW})
    end
    -- The end of one of its messages gives it a turn earlier.
    if in_flight >= limit then return now + {LOOK_AGAIN_S} end
    if is_slow and is_crowded(q) then
      return now + {SLOW_LOOK_AGAIN_S} + redis.call('ZCARD', key('later.' .. q)) / {LANES_LOOKED_AT_PER_S}
    end
    if in_flight >= (tonumber(s[9]) or 0) then
      redis.call('HSET', state, 'peak', in_flight + 1)
      redis.call('EXPIRE', state, {STATE_KEPT_S})
    end
  end
  if base then
    redis.call('HSET', state, 'tat', string.format('%.6f', base + 1 / rate))
    redis.call('HDEL', state, 'due')
  end
end

-- Takes one message from the lane whose turn it is; returns message, lane and position, or nil.
local function take_in_turn(q, is_bounded)
  local ring = key('ring.' .. q)
  for _ = 1, {MOST_LOOKS} do
    local group = redis.call('ZRANGE', ring, 0, 0)[1]
    if not group then return nil end
    local lane = redis.call('ZRANGE', ring .. '/' .. group, 0, 0)[1]
    if not lane then
      redis.call('ZREM', ring, group)
    else
      local line = key('lane.' .. q .. '/' .. lane)
      local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
      local again = first[1] and why_not(q, lane, is_bounded)
      if not first[1] then
        step_out(q, lane)
        redis.call('SREM', key('lanes.' .. q), lane)
      elseif again then
        step_out(q, lane)
        redis.call('ZADD', key('later.' .. q), string.format('%.6f', again), lane)
      else
        redis.call('ZREM', line, first[1])
        if redis.call('EXISTS', line) == 1 then
          redis.call('ZINCRBY', ring .. '/' .. group, 1, lane)
        else
          step_out(q, lane)
          redis.call('SREM', key('lanes.' .. q), lane)
        end
        if redis.call('ZSCORE', ring, group) then redis.call('ZINCRBY', ring, 1, group) end
        return first[1], lane, first[2]
      end
    end
  end
  is_tired = true
end

-- Adds a tag to a lane's messages in flight.
local function note_flight(q, lane, tag)
  local flight = key('flight.' .. q .. '/' .. lane)
  redis.call('ZADD', flight, now, tag)
  redis.call('EXPIRE', flight, math.ceil(held_s))
  if is_slow then
    redis.call('ZADD', slow_key(q, holder), now, tag)
    redis.call('EXPIRE', slow_key(q, holder), math.ceil(held_s))
  end
end

-- Stores the lane and position of a taken message.
local function note(q, lane, position, tag, is_bounded)
  redis.call('HSET', key('taken'), tag, q .. '\n' .. lane .. '\n' .. position)
  if string.sub(lane, -1) == '{SERIAL}' or is_bounded and lane ~= '{OTHERS}' then note_flight(q, lane, tag) end
end
