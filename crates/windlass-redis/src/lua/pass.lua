-- What the gates of a claim let pass. Part of `claim`.
--
-- The tasks of one queue, name and key pass the same gates, so what is true of one task of a lane is true of all of them, and
-- what is taken is always the beginning of a lane. A queue without limits and without keys comes here not at all.

local gates = {}              -- gate to what is known of it, or false when there is neither limit nor hold
local opens_at = nil          -- when the first of the gates that were shut opens by itself

local function wait_for(time)
  if not opens_at or time < opens_at then opens_at = time end
end

-- The state of a gate: how many may pass now, how many have passed in this claim.
local function gate_of(name, rule, held, next_start, running)
  local gate = { room = math.huge, passed = 0, rule = rule, running = tonumber(running or 0),
    is_shared = string.find(name, '^queue:') or string.find(name, '^task:') }
  if held and tonumber(held) > now then
    gate.room = 0
    wait_for(tonumber(held))
    return gate
  end
  if rule and rule.interval then
    gate.next = math.max(tonumber(next_start or now), now)
    local early = now + rule.tolerance - gate.next
    gate.room = early < 0 and 0 or math.floor(early / rule.interval) + 1
    if gate.room == 0 then wait_for(gate.next - rule.tolerance) end
  end
  if rule and rule.most then gate.room = math.min(gate.room, math.max(rule.most - gate.running, 0)) end
  return gate
end

-- Looks at gates, all at once.
local function look_at(names, subjects)
  local new, of = {}, {}
  for i = 1, #names do
    if gates[names[i]] == nil then
      gates[names[i]] = false
      new[#new + 1], of[#of + 1] = names[i], subjects[i]
    end
  end
  if #new == 0 or not look_up().starts then return end
  learn(of)
  local held = look_up().held and ask_many('ZMSCORE', P .. 'held', new) or {}
  local counted, next_starts, running = {}, {}, {}
  for i = 1, #new do
    local rule = rules[of[i]]
    if rule and (rule.interval or rule.most) then counted[#counted + 1] = new[i] end
  end
  if #counted > 0 then
    local starts = ask_many('ZMSCORE', P .. 'next', counted)
    local counts_now = counts_running() and ask_many('HMGET', P .. 'running', counted) or {}
    for i = 1, #counted do next_starts[counted[i]], running[counted[i]] = starts[i], counts_now[i] end
  end
  for i = 1, #new do
    local name, rule = new[i], rules[of[i]]
    local limits = rule and (rule.interval or rule.most)
    if limits or held[i] then
      gates[name] = gate_of(name, limits and rule, held[i], next_starts[name], running[name])
    end
  end
end

-- So many tasks pass the gates of a lane, or less than it seemed.
local function pass(of_lane, amount)
  for i = 1, #of_lane.gates do
    local gate = of_lane.gates[i]
    gate.room, gate.passed = gate.room - amount, gate.passed + amount
  end
end

local function room_of(of_lane)
  local least = math.huge
  for i = 1, #of_lane.gates do least = math.min(least, of_lane.gates[i].room) end
  return least
end

-- What this claim has let pass is counted, once for all of its tasks.
local function count_passed()
  local starts, running = {}, {}
  for name, gate in pairs(gates) do
    if gate and gate.passed > 0 and gate.rule then
      if gate.rule.interval then
        starts[#starts + 1] = string.format('%.0f', gate.next + gate.rule.interval * gate.passed)
        starts[#starts + 1] = name
      end
      if gate.rule.most then
        running[#running + 1] = name
        running[#running + 1] = gate.running + gate.passed
      end
    end
  end
  if #starts > 0 then many('ZADD', P .. 'next', starts) end
  if #running > 0 then many('HSET', P .. 'running', running) end
end

-- The lanes of participants, whose names are given: what is ready of a key, or without one. Their gates are looked at together.
local function lanes_of(queue, keys, names_of)
  local found, names, subjects = {}, {}, {}
  for i = 1, #keys do
    local key = keys[i] ~= '' and keys[i] or nil
    local of_key = {}
    for _, name in ipairs(names_of[keys[i]]) do
      local first = #names + 1
      add_gates(names, subjects, queue, name, key)
      of_key[#of_key + 1] = { key = lane(queue, name, key), from = first, till = #names }
    end
    found[keys[i]] = of_key
  end
  look_at(names, subjects)
  for _, of_key in pairs(found) do
    for _, of_lane in ipairs(of_key) do
      of_lane.gates = {}
      for i = of_lane.from, of_lane.till do
        if gates[names[i]] then of_lane.gates[#of_lane.gates + 1] = gates[names[i]] end
      end
    end
  end
  return found
end

-- The names in a set of which something may start: those that are left alone or whose own gate is shut are not.
local function open_names(set)
  local wanted, names, open = {}, {}, {}
  for _, name in ipairs(call('SMEMBERS', set)) do
    if not blocked[name] then
      wanted[#wanted + 1] = name
      names[#names + 1] = 'task:' .. name
    end
  end
  look_at(names, names)
  for i = 1, #wanted do
    local gate = gates[names[i]]
    if not gate or gate.room > 0 then open[#open + 1] = wanted[i] end
  end
  return open
end

-- Keyed tasks that an older version has put among those without a key go where they belong, as soon as somebody would take
-- them. While a queue has neither keys nor limits they are taken as they are.
local function adopt(queue, of_plain, most)
  for _, of_lane in ipairs(of_plain) do
    repeat
      local rows, moved = call('ZRANGE', of_lane.key, 0, most - 1), 0
      fetch(rows)
      fetch_extras(rows)
      for i = 1, #rows do
        local t = task(rows[i])
        if t and t.state == READY and extras[t.row] and extras[t.row].key then
          leave(t)
          put(of_lane.key, t.row, false)
          enter(t)
          moved = moved + 1
        end
      end
      if moved > 0 then
        fresh[queue] = nil
        flush()
      end
    until moved == 0
  end
end
