-- Needs besides: `wake`.
-- One less of a lane is in hand. Workers that wait are to look whether its next one may go.
local function leave_flight(q, lane, tag)
  redis.call('ZREM', key('flight.' .. q .. '/' .. lane), tag)
  redis.call('ZREM', slow_key(q, holder_of(tag)), tag)
  if redis.call('EXISTS', key('lane.' .. q .. '/' .. lane)) == 1 then
    line_up(q, lane, 1)
    wake(key('wake.' .. q))
  end
end

-- What becomes of a lane when a message of it is out of a worker's hands. Returns where the message belongs, if to one.
local function leave(tag)
  local where = redis.call('HGET', key('taken'), tag)
  if not where then return nil end
  redis.call('HDEL', key('taken'), tag)
  local q, lane, place = string.match(where, '^([^\n]*)\n([^\n]*)\n(.*)$')
  leave_flight(q, lane, tag)
  return q, lane, tonumber(place)
end
