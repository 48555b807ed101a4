-- Adopts deliveries, then takes ready tasks as `claim` does.
--
-- ARGV is that of `claim`, then that of `adopt_deliveries`. Answers what becomes of each delivery, what `claim` answers, and
-- what the node has of the deliveries as `adopt_deliveries` says it: the caller knows the rest of those.
--
-- Its parts: those of `claim` with this one before the claim itself, `adopted.lua`.

-- The first write: without memory it fails, and nothing has been changed.
call('HSET', KEYS[1], 'asked', '1')

-- Deliveries begin at once, and are written once, while nothing waits that could come before them and there is room for all.
local function taker_of(deliveries)
  if closed or deliveries > room or look_up().starts or counts_running() then return nil end
  local queues, fields = {}, {}
  for i = 12, 11 + amount do
    local queue = ARGV[i]
    if not paused_queues[queue] then
      if call('ZCOUNT', P .. 'due:' .. queue, '-inf', now) > 0 then return nil end
      queues[queue] = true
      fields[#fields + 1] = queue .. ' ' .. READY
    end
  end
  local waiting = ask_many('HMGET', P .. 'counts', fields)
  for i = 1, #fields do
    if tonumber(waiting[i] or 0) > 0 then return nil end
  end
  return { node = node, till = string.format('%.0f', now + lease), queues = queues, except = blocked, tasks = {}, leases = {} }
end

local first = 12 + amount + tonumber(ARGV[11])
local deliveries = tonumber(ARGV[first + 2 + tonumber(ARGV[first + 1])])
local adopted, stored, ready, begun = adopt_deliveries(first, taker_of(deliveries))
room = room - (#begun - 2)
