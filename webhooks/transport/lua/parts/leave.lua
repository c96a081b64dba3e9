-- Needs `lanes` and `wake`.
-- Ends a tag's flight, and wakes a worker for the lane's next message.
local function leave_flight(q, lane, tag)
  redis.call('ZREM', key('flight.' .. q .. '/' .. lane), tag)
  redis.call('ZREM', slow_key(q, holder_of(tag)), tag)
  if redis.call('EXISTS', key('lane.' .. q .. '/' .. lane)) == 1 then
    line_up(q, lane, 1)
    wake(key('wake.' .. q))
  end
end

-- Ends the flight of a message, if it came from a lane; returns queue, lane and position.
local function leave(tag)
  local where = redis.call('HGET', key('taken'), tag)
  if not where then return nil end
  redis.call('HDEL', key('taken'), tag)
  local q, lane, position = string.match(where, '^([^\n]*)\n([^\n]*)\n(.*)$')
  leave_flight(q, lane, tag)
  return q, lane, tonumber(position)
end
