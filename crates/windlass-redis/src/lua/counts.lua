-- The counters. Answers fields and values of the counters, what is paused, and for each queue that has ready tasks its name,
-- then rank and priority of the one that is claimed next.

local heads = {}
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  local best, best_row = nil, nil
  local of_queue = { P .. 'keyed:' .. queue }
  for _, name in ipairs(call('SMEMBERS', P .. 'lanes:' .. queue)) do of_queue[#of_queue + 1] = lane(queue, name) end
  for i = 1, #of_queue do
    local first = call('ZRANGE', of_queue[i], 0, 0)
    local t = first[1] and task(first[1])
    if t and (not best or t.rank < best.rank or (t.rank == best.rank and first[1] < best_row)) then
      best, best_row = t, first[1]
    end
  end
  if best then
    heads[#heads + 1] = queue
    heads[#heads + 1] = string.format('%.0f', best.rank)
    heads[#heads + 1] = tostring(best.priority)
  end
end
return { call('HGETALL', P .. 'counts'), call('HKEYS', P .. 'paused'), heads, call('SMEMBERS', P .. 'queues') }
