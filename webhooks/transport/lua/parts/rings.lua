-- Turns of lanes: the ring of groups and, per group, that of its lanes. Needs `turns`, and `most`, the maximum number of messages.
-- Of a ring only its first members are read. Each that had its turn goes behind the others, as in the stored ring.
local rings = {}

local function read_ring(ring)
  local found = redis.call('ZRANGE', ring.name, 0, ring.size - 1, 'WITHSCORES')
  ring.members, ring.scores, ring.changed, ring.dropped = {}, {}, {}, {}
  for i = 1, #found, 2 do
    ring.members[(i + 1) / 2] = found[i]
    ring.scores[(i + 1) / 2] = tonumber(found[i + 1])
  end
  ring.first, ring.last, ring.untouched = 1, #ring.members, #ring.members
  ring.is_whole = #ring.members < ring.size
end

local function save_ring(ring)
  if #ring.dropped > 0 then redis.call('ZREM', ring.name, unpack(ring.dropped)) end
  local changes = {}
  for member, score in pairs(ring.changed) do
    changes[#changes + 1] = score
    changes[#changes + 1] = member
  end
  -- The score of a single member has no meaning.
  if #changes > 0 and (ring.last > ring.first or not ring.is_whole) then
    redis.call('ZADD', ring.name, unpack(changes))
  end
end

local function ring_of(name, size)
  if not rings[name] then
    rings[name] = {name = name, size = size}
    read_ring(rings[name])
  end
  return rings[name]
end

local function first_of(ring)
  if ring.untouched == 0 and not ring.is_whole then
    save_ring(ring)
    read_ring(ring)
  end
  return ring.members[ring.first]
end

-- Takes the first member out of what was read.
local function pop_first(ring)
  local member = ring.members[ring.first]
  if not ring.changed[member] then ring.untouched = ring.untouched - 1 end
  ring.members[ring.first] = nil
  ring.first = ring.first + 1
  return member
end

local function drop_first(ring)
  local member = pop_first(ring)
  ring.changed[member] = nil
  ring.dropped[#ring.dropped + 1] = member
end

-- Moves the first member behind those of its next turn.
local function advance_first(ring)
  local score = ring.scores[ring.first] + 1
  local member = pop_first(ring)
  local members, scores, i = ring.members, ring.scores, ring.last + 1
  ring.changed[member], ring.last = score, i
  while i > ring.first and (scores[i - 1] > score or scores[i - 1] == score and members[i - 1] > member) do
    members[i], scores[i] = members[i - 1], scores[i - 1]
    i = i - 1
  end
  members[i], scores[i] = member, score
end

-- Whether the search ended at its limit; lanes that must wait, and those without messages.
local is_tired, waiting_lanes, empty_lanes = false, {}, {}

-- Chooses the next message of the lane whose turn it is; returns message, lane's state and position, or nil.
local function choose_in_turn(q, is_bounded)
  local ring = ring_of(key('ring.' .. q), most)
  for _ = 1, {MOST_LOOKS} do
    local group = first_of(ring)
    if not group then return nil end
    local inner = ring_of(ring.name .. '/' .. group, 4)
    local lane = first_of(inner)
    local l = lane and look_at(q, lane, is_bounded)
    local again = l and l.waiting > 0 and why_not(l)
    if l and l.waiting > 0 and not again then
      local first = redis.call('ZRANGE', l.line, l.taken, l.taken, 'WITHSCORES')
      l.taken = l.taken + 1
      if l.taken < l.waiting then
        advance_first(inner)
      else
        drop_first(inner)
        empty_lanes[#empty_lanes + 1] = l
      end
      if first_of(inner) then advance_first(ring) else drop_first(ring) end
      return first[1], l, first[2]
    end
    if l then
      drop_first(inner)
      if again then
        waiting_lanes[#waiting_lanes + 1] = {l, again}
      else
        empty_lanes[#empty_lanes + 1] = l
      end
    end
    if not first_of(inner) then drop_first(ring) end
  end
  is_tired = true
end

-- Removes what was chosen from its lanes. To be called when it is in unacked.
local function save_turns()
  for _, l in ipairs(seen) do
    if l.taken > 0 then redis.call('ZPOPMIN', l.line, l.taken) end
  end
  for _, l in ipairs(empty_lanes) do redis.call('SREM', key('lanes.' .. l.q), l.lane) end
  for _, wait in ipairs(waiting_lanes) do
    redis.call('ZADD', key('later.' .. wait[1].q), string.format('%.6f', wait[2]), wait[1].lane)
  end
  for _, ring in pairs(rings) do save_ring(ring) end
end
