-- What a move to another store does to this one.
--
-- ARGV[5] is the step. `close`, `open`: answer 1, or 0 when it was so already. `groups`: ARGV[6] is the most; answers for each
-- group that is not complete its id, then size, policy, what follows, phase, and places and outcomes in turn.
-- `evict`: ARGV[6] is the number of groups, then their ids and those of tasks; answers how many were forgotten.

local step = ARGV[5]

if step == 'close' then
  return call('HSETNX', P .. 'paused', 'closed', '1')
elseif step == 'open' then
  local changed = call('HDEL', P .. 'paused', 'closed')
  for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do ring(queue, math.huge) end
  return changed
elseif step == 'groups' then
  local answers = {}
  for _, id in ipairs(call('ZRANGE', P .. 'open', 0, tonumber(ARGV[6]) - 1)) do
    local group = call('HMGET', P .. 'group:' .. id, 'size', 'policy', 'after', 'phase')
    answers[#answers + 1] = { id, group[1], group[2], group[3], group[4], call('HGETALL', P .. 'arrived:' .. id) }
  end
  return answers
end

local evicted, first_task = 0, 7 + tonumber(ARGV[6])
for i = 7, first_task - 1 do
  local id = ARGV[i]
  evicted = evicted + call('DEL', P .. 'group:' .. id)
  call('DEL', P .. 'arrived:' .. id)
  call('ZREM', P .. 'groups', id)
  call('ZREM', P .. 'open', id)
end
local wanted = {}
for i = first_task, #ARGV do wanted[#wanted + 1] = ARGV[i] end
local known, seen = {}, {}
for i, row in ipairs(ask_many('HMGET', ID, wanted)) do
  if row and not seen[row] then
    seen[row] = true
    known[#known + 1] = row
  end
end
fetch(known)
local gone = {}
for _, row in ipairs(known) do
  local t = task(row)
  if t and t.state ~= RUNNING then
    if waits(t.state) then
      if has(t.flags, F_GUARD) then give_back_key(t) end
      leave(t)
    else
      -- Dead letters are counted down with their removal.
      put(shelf(t), row, false)
    end
    gone[#gone + 1] = row
  end
end
remove(gone)
flush()
return evicted + #gone
