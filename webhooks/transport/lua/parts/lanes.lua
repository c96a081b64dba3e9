-- Keys and turns of lanes. Needs ARGV[1], the user's prefix, and `now`.
local function key(name) return ARGV[1] .. 'webhooks.' .. name end

-- Calls a command with any number of arguments; Lua's `unpack` has a limit.
local function call_many(command, name, arguments)
  for i = 1, #arguments, 1000 do redis.call(command, name, unpack(arguments, i, math.min(i + 999, #arguments))) end
end

-- Returns the process token of a tag; nil for tags of older versions and of kombu.
local function holder_of(tag) return string.match(tag, '^(%x+)/') end

-- Key of a process's tags of slow lanes.
local function slow_key(q, holder) return key('slow.' .. q .. '/' .. (holder or '')) end

local last_position

local function next_position()
  last_position = last_position or tonumber(redis.call('GET', key('place')) or '0')
  last_position = math.max(last_position + 1, math.floor(now * 1000000))
  return last_position
end

-- To be called after `next_position`.
local function save_position()
  if last_position then redis.call('SET', key('place'), string.format('%.0f', last_position)) end
end

-- Gives a lane and its group a turn, this far behind the next one.
local function give_turn(q, lane, behind)
  local group = string.match(lane, '^[^/]*')
  local ring = key('ring.' .. q)
  local inner = ring .. '/' .. group
  for _, turn in ipairs({ {inner, lane}, {ring, group} }) do
    if not redis.call('ZSCORE', turn[1], turn[2]) then
      local first = redis.call('ZRANGE', turn[1], 0, 0, 'WITHSCORES')
      redis.call('ZADD', turn[1], tonumber(first[2] or '0') + behind, turn[2])
    end
  end
end

-- The same for a lane that may have to wait.
local function line_up(q, lane, behind)
  give_turn(q, lane, behind)
  redis.call('ZREM', key('later.' .. q), lane)
end

local function step_out(q, lane)
  local group = string.match(lane, '^[^/]*')
  local ring = key('ring.' .. q)
  redis.call('ZREM', ring .. '/' .. group, lane)
  if redis.call('EXISTS', ring .. '/' .. group) == 0 then redis.call('ZREM', ring, group) end
end

local entered = {}

local function enter(q, lane, position, message)
  local name = q .. '/' .. lane
  redis.call('ZADD', key('lane.' .. name), string.format('%.0f', position), message)
  if entered[name] then return end
  entered[name] = true
  redis.call('SADD', key('lanes.' .. q), lane)
  -- A lane that has messages is in its ring or in the set of those that must wait.
  if redis.call('ZSCORE', key('ring.' .. q) .. '/' .. string.match(lane, '^[^/]*'), lane) then return end
  if not redis.call('ZSCORE', key('later.' .. q), lane) then give_turn(q, lane, 0.125) end
end

-- The lanes of a serial parent are one lane.
local ordered = {[''] = false}
local function is_ordered(parent)
  if ordered[parent] == nil then ordered[parent] = redis.call('SISMEMBER', key('serial'), parent) == 1 end
  return ordered[parent]
end
local function choose(lane, parent) return is_ordered(parent) and parent .. '{SERIAL}' or lane end

-- Returns the queue whose lanes a message uses.
local function lanes_of(q, lane, joined)
  if lane == '' or lane == '{OTHERS}' then return q end
  return joined
end
