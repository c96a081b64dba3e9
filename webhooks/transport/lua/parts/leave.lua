-- Needs `lanes` and `wake`.
-- Adds a tag to a list of a table of lists.
local function add(lists, name, tag)
  lists[name] = lists[name] or {}
  table.insert(lists[name], tag)
end

-- Ends the flights of tags, by queue and lane as "queue\nlane"; wakes workers for the next messages of these lanes.
local function leave_flights(tags_by_lane)
  local slow = {}
  for place, tags in pairs(tags_by_lane) do
    local q, lane = string.match(place, '^([^\n]*)\n(.*)$')
    local name = q .. '/' .. lane
    call_many('ZREM', key('flight.' .. name), tags)
    for _, tag in ipairs(tags) do add(slow, slow_key(q, holder_of(tag)), tag) end
    -- A lane that does not wait has its turn already, if it has messages.
    if redis.call('ZREM', key('later.' .. q), lane) == 1 then
      give_turn(q, lane, 1)
      wake(key('wake.' .. q))
    end
  end
  for name, tags in pairs(slow) do call_many('ZREM', name, tags) end
end

-- Ends the flight of a message, if it came from a lane; returns queue, lane and position.
local function leave(tag)
  local where = redis.call('HGET', key('taken'), tag)
  if not where then return nil end
  redis.call('HDEL', key('taken'), tag)
  local q, lane, position = string.match(where, '^([^\n]*)\n([^\n]*)\n(.*)$')
  leave_flights({[q .. '\n' .. lane] = {tag}})
  return q, lane, tonumber(position)
end
