-- The turns of a queue's keys. Part of `claim`.

local KEYS_PER_CLAIM = 10000
local PAGE_MAX = 1000

-- Deals places to participants with these weights, in their order, the first has `left` of its turn: `fair::deal` of the engine.
-- Answers how many each gets, and with whom and what of its turn the next deal begins.
local function deal(weights, left, places)
  local amount, shares, round = #weights, {}, 0
  for i = 1, amount do
    shares[i] = 0
    round = round + weights[i]
  end
  local rest = math.min(left, weights[1], places)
  shares[1] = rest
  places = places - rest
  if places == 0 and rest < math.min(left, weights[1]) then return shares, 1, math.min(left, weights[1]) - rest end
  local at = 1 % amount + 1
  while places > 0 do
    if at == 1 then
      local rounds = math.floor(places / round)
      for i = 1, amount do shares[i] = shares[i] + rounds * weights[i] end
      places = places - rounds * round
      if places == 0 then break end
    end
    local taken_now = math.min(weights[at], places)
    shares[at] = shares[at] + taken_now
    places = places - taken_now
    if taken_now < weights[at] then return shares, at, weights[at] - taken_now end
    at = at % amount + 1
  end
  return shares, at, weights[at]
end

-- The order in which a server keeps keys; that of the language depends on where it runs.
local function comes_before(one, other)
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

-- The next keys of these names, about so many of each, in their order, and the names of each; and from where to go on.
local function next_keys(queue, names, low, high, size)
  local keys, names_of, till = {}, {}, nil
  for _, name in ipairs(names) do
    local page = call('ZRANGEBYLEX', P .. 'keys:' .. queue .. ' ' .. name, low, high, 'LIMIT', 0, size)
    for i = 1, #page do
      if not names_of[page[i]] then
        names_of[page[i]] = {}
        keys[#keys + 1] = page[i]
      end
      table.insert(names_of[page[i]], name)
    end
    if #page == size and (not till or comes_before(page[size], till)) then till = page[size] end
  end
  if #names > 1 then
    table.sort(keys, comes_before)
    -- Behind the end of a page, names may be missing.
    while till and keys[#keys] ~= till do keys[#keys] = nil end
  end
  return keys, names_of, till
end

local function has_room(of_key)
  for i = 1, #of_key do
    if room_of(of_key[i]) > 0 then return true end
  end
  return false
end

-- Whether this claim itself has taken the last place of a gate that a participant shares with others.
local function comes_too_late(of_key)
  for _, of_lane in ipairs(of_key) do
    for _, gate in ipairs(of_lane.gates) do
      if gate.room <= 0 and gate.passed > 0 and gate.is_shared then return true end
    end
  end
  return false
end

-- The keys of which something may start beginning with whose turn it is, at most so many, without those that are set aside;
-- tasks without a key come before all keys. What is found out about a key is kept in `known`. Keys that must wait are looked at
-- many at a time: there may be thousands.
local function participants(queue, from, most, aside, known)
  local line, looked, size = {}, 0, most
  local function see(keys, names_of)
    local new = {}
    for i = 1, #keys do
      if not aside[keys[i]] and not known[keys[i]] then new[#new + 1] = keys[i] end
    end
    for key, of_key in pairs(lanes_of(queue, new, names_of)) do known[key] = of_key end
    for i = 1, #keys do
      local key = keys[i]
      if not aside[key] and #line < most then
        if has_room(known[key]) then line[#line + 1] = key else aside[key] = true end
      end
    end
  end
  local names = open_names(P .. 'names:' .. queue)
  local function walk(low, high)
    while #line < most and looked < KEYS_PER_CLAIM do
      local keys, names_of, till = next_keys(queue, names, low, high, size)
      see(keys, names_of)
      looked = looked + #keys
      if not till then return end
      low, size = '(' .. till, math.min(4 * size, PAGE_MAX)
    end
  end
  local function see_plain()
    if not aside[''] then see({ '' }, { [''] = open_names(P .. 'lanes:' .. queue) }) end
  end
  if from == '' then
    see_plain()
    walk('-', '+')
  else
    walk('[' .. from, '+')
    see_plain()
    walk('-', '(' .. from)
  end
  return line
end

local function weights_of(line)
  local subjects, weights = {}, {}
  for i = 1, #line do
    if line[i] ~= '' and look_up().keys then subjects[#subjects + 1] = 'key:' .. line[i] end
  end
  learn(subjects)
  for i = 1, #line do
    local rule = rules['key:' .. line[i]]
    weights[i] = rule and rule.weight or 1
  end
  return weights
end

-- From a queue with limits or keys: what its gates let pass, its keys in turns.
local function take_in_turns(queue, is_keyed)
  look_at({ 'queue:' .. queue }, { 'queue:' .. queue })
  local gate, aside, known, unserved = gates['queue:' .. queue], {}, {}, nil
  local left, from = 1, ''
  if is_keyed then
    local turn = call('HGET', P .. 'turn', queue)
    if turn then left, from = string.match(turn, '^(%d+) (.*)$') end
  end
  if look_up().aged and not (gate and gate.room <= 0) then
    adopt(queue, lanes_of(queue, { '' }, { [''] = open_names(P .. 'lanes:' .. queue) })[''], room)
    is_keyed = is_keyed or call('EXISTS', P .. 'names:' .. queue) == 1
  end
  while room > 0 do
    -- Places that the queue itself does not have are not dealt, or the turns would pass by.
    local places = math.min(room, gate and gate.room or room)
    if places == 0 then break end
    local line = participants(queue, from, places + 1, aside, known)
    if #line == 0 then break end
    local weights = weights_of(line)
    local quota = line[1] == from and math.min(tonumber(left), weights[1]) or weights[1]
    local shares, at, rest = deal(weights, quota, places)
    read_ahead(line, shares, known)
    for i = 1, #line do
      local key, share = line[i], shares[i]
      if share > 0 then
        local got = take_of(queue, key ~= '' and key or nil, share, known[key])
        room = room - got
        if got < share then
          aside[key] = true
          local due_to_it = i == 1 and quota or weights[i]
          -- Whoever comes too late for a gate that all of them pass is the first to pass it next time.
          if got < due_to_it and not unserved and comes_too_late(known[key]) then unserved = { due_to_it - got, key } end
        end
      end
    end
    left, from = rest, line[at]
  end
  if unserved then left, from = unserved[1], unserved[2] end
  if is_keyed and #taken > 0 then call('HSET', P .. 'turn', queue, left .. ' ' .. from) end
end
