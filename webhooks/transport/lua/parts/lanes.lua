-- To be had in each script that touches lanes. Needs ARGV[1], the user's prefix, and `now`.
local function key(name) return ARGV[1] .. 'webhooks.' .. name end

-- Returns the token that a tag begins with: none in tags of workers of older versions, nor in kombu's own.
local function holder_of(tag) return string.match(tag, '^(%x+)/') end

-- The slow ones that a process has in hand.
local function slow_key(q, holder) return key('slow.' .. q .. '/' .. (holder or '')) end

local function next_place()
  local place = math.max(tonumber(redis.call('GET', key('place')) or '0') + 1, math.floor(now * 1000000))
  redis.call('SET', key('place'), string.format('%.0f', place))
  return place
end

-- Lines a lane up, and its group, so far behind the one whose turn it is: that one's turn comes first in any case.
local function line_up(q, lane, behind)
  local group = string.match(lane, '^[^/]*')
  local ring = key('ring.' .. q)
  local inner = ring .. '/' .. group
  for _, turn in ipairs({ {inner, lane}, {ring, group} }) do
    if not redis.call('ZSCORE', turn[1], turn[2]) then
      local first = redis.call('ZRANGE', turn[1], 0, 0, 'WITHSCORES')
      redis.call('ZADD', turn[1], tonumber(first[2] or '0') + behind, turn[2])
    end
  end
  redis.call('ZREM', key('later.' .. q), lane)
end

local function step_out(q, lane)
  local group = string.match(lane, '^[^/]*')
  local ring = key('ring.' .. q)
  redis.call('ZREM', ring .. '/' .. group, lane)
  if redis.call('EXISTS', ring .. '/' .. group) == 0 then redis.call('ZREM', ring, group) end
end

local function enter(q, lane, place, message)
  redis.call('ZADD', key('lane.' .. q .. '/' .. lane), string.format('%.0f', place), message)
  redis.call('SADD', key('lanes.' .. q), lane)
  if not redis.call('ZSCORE', key('later.' .. q), lane) then line_up(q, lane, 0.125) end
end

-- Where a whole is serial, its parts are one lane.
local function is_ordered(whole) return whole ~= '' and redis.call('SISMEMBER', key('serial'), whole) == 1 end
local function choose(lane, whole) return is_ordered(whole) and whole .. '{SERIAL}' or lane end

-- The queue in whose lanes a message stands.
local function lanes_of(q, lane, joined)
  if lane == '' or lane == '{OTHERS}' then return q end
  return joined
end
