#!lua flags=allow-oom
-- KEYS: unacked, unacked_index, parked set and wake-up of each queue, then the lists: all queues' of the first
-- priority, all of the next. ARGV: prefix, id of this take, maximum number of messages, idle threads of this worker,
-- messages of one queue in a row, number of queues, batch size, maximum seconds in flight, all threads of this worker,
-- then per queue its name, the end of its entries in unacked, "" or "lanes" or "bounded", then the priorities.
-- A lapsed lease of this process is renewed, so that it keeps what it takes.
-- Returns Redis's time, milliseconds until a parked message or a lane is due or -1, the number of unsorted messages,
-- then per message its queue's number, lane or "", and text.
--#include now
--#include wake
--#include lanes
--#include leases
if redis.call('EXISTS', key('over.' .. ARGV[2])) == 1 then return {string.format('%.6f', wall), -1, 0} end
local id, most, room, row, queues = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local batch, held_s, slots, holder = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), holder_of(id)
local name, ending, kind = {}, {}, {}
for q = 1, queues do name[q], ending[q], kind[q] = ARGV[7 + 3 * q], ARGV[8 + 3 * q], ARGV[9 + 3 * q] end
local priorities = #ARGV - 9 - 3 * queues
local function list(priority, queue) return KEYS[2 + 2 * queues + (priority - 1) * queues + queue] end
local level = {}
for p = 1, priorities do level[ARGV[9 + 3 * queues + p]] = p end
-- A dead worker's messages still count, so this worker's idle threads are the minimum.
local threads = tonumber(redis.call('GET', key('threads')) or '0')
local free = math.max(threads - redis.call('HLEN', KEYS[1]), room)
--#include turns
--#include rings
local lease = holder and redis.call('ZSCORE', key('leases'), holder)
if lease and tonumber(lease) <= now then renew(holder) end

local next_due = -1
local function note_due(at)
  local wait = math.max(0, math.ceil((tonumber(at) - now) * 1000))
  if next_due < 0 or wait < next_due then next_due = wait end
end

local unsorted_lists = {}
for q = 1, queues do
  local parked = KEYS[1 + 2 * q]
  local due = redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, batch)
  for _, member in ipairs(due) do
    local head, message = string.match(member, '^([^:]*):(.*)$')
    local priority, lane = string.match(head, '^([^@]*)@(.*)$')
    if lane and kind[q] ~= '' then
      enter(name[q], lane, next_position(), message)
    else
      redis.call('LPUSH', list(level[priority or head] or 1, q), message)
    end
  end
  if #due > 0 then redis.call('ZREM', parked, unpack(due)) end
  local first = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES')
  if first[2] then note_due(first[2]) end
  if kind[q] ~= '' then
    for _, lane in ipairs(redis.call('ZRANGEBYSCORE', key('later.' .. name[q]), '-inf', now, 'LIMIT', 0, batch)) do
      line_up(name[q], lane, 1)
    end
    for p = 1, priorities do unsorted_lists[#unsorted_lists + 1] = list(p, q) end
  end
end
save_position()
local unsorted = 0
if #unsorted_lists > 0 and redis.call('EXISTS', unpack(unsorted_lists)) > 0 then
  for _, name in ipairs(unsorted_lists) do unsorted = unsorted + redis.call('LLEN', name) end
end

-- Messages are chosen, then stored in unacked, then removed from lists and lanes: an error loses none.
local reply, taken = {string.format('%.6f', wall), next_due, unsorted}, 0
local entries, index, places, popped = {}, {}, {}, {}
local function choose_message(q, message)
  taken = taken + 1
  free = free - 1
  local tag = id .. ':' .. taken
  entries[2 * taken - 1], entries[2 * taken] = tag, '[' .. message .. ending[q]
  index[2 * taken - 1], index[2 * taken] = now, tag
  reply[3 * taken + 1], reply[3 * taken + 2], reply[3 * taken + 3] = q, '', message
  return tag
end
local function choose_from_lanes(q)
  local message, l, position = choose_in_turn(name[q], kind[q] == 'bounded')
  if not message then return false end
  local tag = choose_message(q, message)
  reply[3 * taken + 2] = l.lane
  places[#places + 1] = tag
  places[#places + 1] = name[q] .. '\n' .. l.lane .. '\n' .. position
  note_flight(l, tag)
  return true
end
local function choose_from_list(q, from)
  local message = redis.call('LINDEX', from, -1 - (popped[from] or 0))
  if not message then return false end
  popped[from] = (popped[from] or 0) + 1
  choose_message(q, message)
  return true
end
for p = 1, priorities do
  local found = true
  while found and taken < most do
    found = false
    for q = 1, queues do
      for _ = 1, row do
        if taken == most then break end
        local is_found
        if kind[q] == '' then is_found = choose_from_list(q, list(p, q)) else is_found = p == 1 and choose_from_lanes(q) end
        if not is_found then break end
        found = true
      end
    end
  end
end
if taken > 0 then
  redis.call('HSET', KEYS[1], unpack(entries))
  redis.call('ZADD', KEYS[2], unpack(index))
  if #places > 0 then redis.call('HSET', key('taken'), unpack(places)) end
  save_flights()
end
for from, count in pairs(popped) do redis.call('RPOP', from, count) end
save_turns()

for q = 1, queues do
  if kind[q] ~= '' then
    local first = redis.call('ZRANGE', key('later.' .. name[q]), 0, 0, 'WITHSCORES')
    if first[2] then note_due(first[2]) end
  end
end
if is_tired then next_due = 0 end
reply[2] = next_due
if taken == most then
  for q = 1, queues do
    local is_more = kind[q] ~= '' and redis.call('EXISTS', key('ring.' .. name[q])) == 1
    for p = 1, priorities do is_more = is_more or redis.call('EXISTS', list(p, q)) == 1 end
    if is_more then wake(KEYS[2 + 2 * q]) end
  end
end
return reply
