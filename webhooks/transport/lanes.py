"""Lanes: what keeps one customer, or one slow endpoint, from delaying the others. The Lua of it, and its names.

A queue that has lanes has no one line but many, and takes from them in turn. A lane's name is ``group/…``: groups take
turns, and within a group its lanes do, whatever waits in each. Where lanes are *bounded*, only so many messages of one
may be in workers' hands at a time:

* A lane has a **share**: so many at a time. It begins at `FIRST_SHARE`, grows by one with each good answer that comes
  while all of it is used, halves with each bad one, and shrinks to twice of what was needed lately. So an endpoint that
  stops answering holds little more than it needed when it answered.
* Besides, it gets no more than four times **what is free**: of all threads of all workers, those that have nothing in
  hand. Lanes that are slow, or of which nothing good is known yet, have three quarters of all threads together.
* What is in hand is counted by the messages themselves, in the scripts that take and settle them. So a worker that dies
  holds its part until its lease lapses, and no longer.

A lane may have a rate limit (GCRA: the theoretical arrival time of ITU-T I.371), and may be held until an instant. A
*serial* lane, whose name ends with ``!``, gives out one message at a time, in the order in which they came: its place
in the order stays a message's own when it is given back.

Keys, each behind ``webhooks.`` and the user's prefix, ``q`` the queue: ``lane.q/name`` (a sorted set: messages by
place), ``lanes.q`` (those that have any), ``ring.q`` and ``ring.q/group`` (whose turn it is), ``later.q`` (those that
may not go now, and when to look again), ``state.q/name``, ``flight.q/name`` (what of it is in hand), ``slow.q`` (what
of all slow ones is), ``taken`` (whence each message in hand came), ``place``, ``place.newest``, ``serial``,
``sorting``, ``threads``, ``workers``, ``leases`` (until when each process holds what it holds), ``leases.since`` (from
when on it has renewed its lease without a gap) and ``clock`` (Redis's time when it was looked at last, and how far it
is behind for having gone back: all other times count by both).
"""

from collections.abc import Mapping
from typing import TypedDict

from webhooks.transport.headers import OTHERS
from webhooks.transport.holder import LEASE_S, MAX_GAP_S, WITNESS_AFTER_S

#: Attempts at one time that an endpoint begins with, and does not fall below for want of work.
FIRST_SHARE = 4
#: Seconds that its attempts may take on the average before an endpoint counts as slow.
SLOW_S = 1.0
#: What it may take of the free threads: of an endpoint that is quick, so much for each one that it leaves.
_QUICK_FACTOR = 4
#: Seconds after which a lane's share is fitted to what it used.
_FIT_EVERY_S = 5
#: Seconds until a lane that waits for its own messages is looked at again, should nothing else wake it.
_LOOK_AGAIN_S = 5
#: The same of a slow one for which too many slow ones are in hand; and how many such lanes are looked at per second.
_SLOW_LOOK_AGAIN_S = 0.25
_LANES_LOOKED_AT_PER_S = 2_000
#: Seconds for which what is known of an endpoint is kept after its last attempt.
_STATE_KEPT_S = 86_400
#: Lanes that one message looks into before it gives up: those passed over are put aside, so the next one goes on.
_MOST_LOOKS = 64
#: Seconds after which a worker that was not heard of is gone.
_WORKER_GONE_S = 5
#: Ends the name of a serial lane.
SERIAL = "!"
#: In a message's headers, of a webhook with a limit: attempts per second and burst, as they were when it was made. Only
#: for a lane of which Redis knows no limit, as it has lost what it knew.
RATE_HEADER = "webhooks_rate"
#: True: the message comes first in its lane. Only told to the transport, which does not store it.
FIRST_HEADER = "webhooks_first"
#: In the headers of a message as the worker gets it: the lane that it came out of; not there if it came out of none.
TAKEN_FROM_HEADER = "webhooks_taken_from"


class Lanes(TypedDict):
    """Which queues have lanes: the value of ``webhooks_lanes`` in ``broker_transport_options``, which tools show."""

    #: Names of the queues, and whether what is in hand of one lane is bounded.
    queues: Mapping[str, bool]
    #: Queue → another one, in whose lanes its messages stand, but for those that are in no lane of their own.
    joined: Mapping[str, str]
    #: ``module:function``: message → lane, of one that has no `LANE_HEADER`. Must not raise.
    lane_of: str


def whole_of(lane: str) -> str:
    """Return what a lane is a part of, ``group/kind`` of ``group/kind/part``; ``""`` where there is no such thing.

    If that is serial, all its parts are one lane.
    """
    parts = lane.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else ""


#: To be had in each script that touches lanes. Needs ARGV[1], the user's prefix, and `now`.
LUA = f"""
local function key(name) return ARGV[1] .. 'webhooks.' .. name end

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
  for _, turn in ipairs({{ {{inner, lane}}, {{ring, group}} }}) do
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
"""

#: Needs besides: `wake`.
LUA_LEAVE = """
-- One less of a lane is in hand. Workers that wait are to look whether its next one may go.
local function leave_flight(q, lane, tag)
  redis.call('ZREM', key('flight.' .. q .. '/' .. lane), tag)
  redis.call('ZREM', key('slow.' .. q), tag)
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
  local q, lane, place = string.match(where, '^([^\\n]*)\\n([^\\n]*)\\n(.*)$')
  leave_flight(q, lane, tag)
  return q, lane, tonumber(place)
end
"""

#: Needs besides: `free`, the threads that have nothing in hand; `threads`, all of them; `held_s`, the longest that a
#: message is in hand.
LUA_TAKE = f"""
local is_slow, is_tired = false, false  -- of the lane looked at last; whether looking was given up

-- Returns nothing if a lane may go, else when to look again.
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
    -- A lane that waited for this instant goes on counting from it, not from when somebody came to look.
    base = math.max(tat, s[5] and math.max(tonumber(s[5]), now - 0.25) or now)
  end
  local is_serial = string.sub(lane, -1) == '{SERIAL}'
  if is_serial or is_bounded and lane ~= '{OTHERS}' then
    local flight = key('flight.' .. q .. '/' .. lane)
    redis.call('ZREMRANGEBYSCORE', flight, '-inf', now - held_s)
    local in_flight, limit = redis.call('ZCARD', flight), 1
    if not is_serial then
      is_slow = not s[8] or (tonumber(s[7]) or 0) >= {SLOW_S}
      limit = math.min({_QUICK_FACTOR} * free, tonumber(s[6]) or {FIRST_SHARE})
    end
    -- Its own messages line it up again when they end.
    if in_flight >= limit then return now + {_LOOK_AGAIN_S} end
    if is_slow then
      local slow = key('slow.' .. q)
      redis.call('ZREMRANGEBYSCORE', slow, '-inf', now - held_s)
      if redis.call('ZCARD', slow) >= math.max(1, math.floor(math.max(threads, free) * 3 / 4)) then
        return now + {_SLOW_LOOK_AGAIN_S} + redis.call('ZCARD', key('later.' .. q)) / {_LANES_LOOKED_AT_PER_S}
      end
    end
    if in_flight >= (tonumber(s[9]) or 0) then
      redis.call('HSET', state, 'peak', in_flight + 1)
      redis.call('EXPIRE', state, {_STATE_KEPT_S})
    end
  end
  if base then
    redis.call('HSET', state, 'tat', string.format('%.6f', base + 1 / rate))
    redis.call('HDEL', state, 'due')
  end
end

-- Takes one message from the lane whose turn it is; returns it, its lane and its place, or nothing.
local function take_in_turn(q, is_bounded)
  local ring = key('ring.' .. q)
  for _ = 1, {_MOST_LOOKS} do
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

-- Counts one more of a lane that is in hand.
local function note_flight(q, lane, tag)
  local flight = key('flight.' .. q .. '/' .. lane)
  redis.call('ZADD', flight, now, tag)
  redis.call('EXPIRE', flight, math.ceil(held_s))
  if is_slow then redis.call('ZADD', key('slow.' .. q), now, tag) end
end

-- Notes in whose hands a message is now.
local function note(q, lane, place, tag, is_bounded)
  redis.call('HSET', key('taken'), tag, q .. '\\n' .. lane .. '\\n' .. place)
  if string.sub(lane, -1) == '{SERIAL}' or is_bounded and lane ~= '{OTHERS}' then note_flight(q, lane, tag) end
end
"""

#: Notes a lane's limit, or that it has none any more.
LUA_LIMIT = f"""
local function set_limit(q, lane, rate, burst)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'rate', 'burst', 'tat')
  if (s[1] or '') == rate and (s[2] or '') == burst then return end
  redis.call('HDEL', state, 'rate', 'burst', 'due')
  if rate ~= '' then
    redis.call('HSET', state, 'rate', rate, 'burst', burst)
    if s[3] then
      -- The next attempt may be made when it might before, or as soon as it might by the new limit alone; only that
      -- one. Workers learn of a change one after the other: as often as the limit changes, no attempt comes too early.
      local due = tonumber(s[3]) - (s[1] and ((tonumber(s[2]) or 1) - 1) / tonumber(s[1]) or 0)
      due = math.max(now, math.min(due, now + 1 / tonumber(rate)))
      redis.call('HSET', state, 'tat', string.format('%.6f', due + (tonumber(burst) - 1) / tonumber(rate)))
    end
  end
  redis.call('EXPIRE', state, {_STATE_KEPT_S})
  if redis.call('ZSCORE', key('later.' .. q), lane) then line_up(q, lane, 1) end
end
"""

#: What an attempt tells of its endpoint: queue, lane, milliseconds or "", "good", "bad" or "".
LUA_REPORT = f"""
local function report(q, lane, ms, verdict)
  local state = key('state.' .. q .. '/' .. lane)
  local s = redis.call('HMGET', state, 'share', 'mean', 'peak', 'fitted')
  local share, in_flight = tonumber(s[1]) or {FIRST_SHARE}, redis.call('ZCARD', key('flight.' .. q .. '/' .. lane))
  local changes = {{}}
  local function set(name, value) changes[#changes + 1] = name; changes[#changes + 1] = value end
  if ms ~= '' then
    local seconds = tonumber(ms) / 1000
    set('mean', string.format('%.4f', s[2] and 0.8 * tonumber(s[2]) + 0.2 * seconds or seconds))
  end
  if verdict == 'good' then
    set('good', 1)
    if in_flight >= share then share = share + 1 end
  elseif verdict == 'bad' then
    share = math.max(1, math.floor(share / 2))
    redis.call('HDEL', state, 'good')
  end
  local fitted = tonumber(s[4])
  if not fitted or now - fitted > {_FIT_EVERY_S} then
    local peak = tonumber(s[3]) or 0
    if share > {FIRST_SHARE} then share = math.min(share, math.max({FIRST_SHARE}, 2 * peak)) end
    set('fitted', string.format('%.3f', now))
    set('peak', in_flight)
  end
  set('share', share)
  redis.call('HSET', state, unpack(changes))
  redis.call('EXPIRE', state, {_STATE_KEPT_S})
end
"""

#: Leases: see `holder`. Needs besides: `now`.
LUA_LEASES = f"""
local function renew(token)
  local before = redis.call('ZSCORE', key('leases'), token)
  if not before or tonumber(before) - now < {LEASE_S - MAX_GAP_S} then
    redis.call('HSET', key('leases.since'), token, string.format('%.6f', now))
  end
  redis.call('ZADD', key('leases'), string.format('%.6f', now + {LEASE_S}), token)
end

-- Returns the tokens whose lease has lapsed, if the process that asks may say so.
local function find_lapsed(witness)
  local before = redis.call('ZSCORE', key('leases'), witness)
  local since = redis.call('HGET', key('leases.since'), witness)
  if not before or tonumber(before) - now < {LEASE_S - MAX_GAP_S} then return {{}} end
  if not since or now - tonumber(since) < {WITNESS_AFTER_S} then return {{}} end
  return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', now)
end

-- Returns the token that a tag begins with: none in tags of workers of older versions, nor in kombu's own.
local function holder_of(tag) return string.match(tag, '^(%x+)/') end
"""

#: What a worker says once a second: ARGV 2 and 3 are its id and its threads. So all know how many there are.
LUA_ALIVE = f"""
local workers = key('workers')
if ARGV[3] == '0' then
  redis.call('HDEL', workers, ARGV[2])
else
  redis.call('HSET', workers, ARGV[2], string.format('%.3f', now) .. ' ' .. ARGV[3])
end
local all, sum = redis.call('HGETALL', workers), 0
for i = 1, #all, 2 do
  local seen, threads = string.match(all[i + 1], '^(%S+) (%d+)$')
  if seen and tonumber(seen) > now - {_WORKER_GONE_S} then
    sum = sum + tonumber(threads)
  else
    redis.call('HDEL', workers, all[i])
  end
end
redis.call('SET', key('threads'), sum)
"""
