-- Takes a lock for some milliseconds; returns whether it is free or ours. Its value has its end, as keys expire by
-- Redis's clock, which may go back.
local function take_lock(name, who, ms)
  local holder, ends = string.match(redis.call('GET', name) or '', '^(%S+) (%S+)$')
  local left = holder and holder ~= who and tonumber(ends) - now or 0
  if left > 0 and left <= ms / 1000 then return false end
  redis.call('SET', name, who .. ' ' .. string.format('%.6f', now + ms / 1000), 'PX', ms)
  return true
end

local function has_lock(name, who) return string.match(redis.call('GET', name) or '', '^(%S+)') == who end
