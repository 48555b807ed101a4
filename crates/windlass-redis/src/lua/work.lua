-- Where an ended task is kept: dead letters, results with a time of their own, everything else.
local function shelf(t)
  if t.state == IS_DEAD then return DEAD, t.at end
  if t.state == SUCCEEDED and has(t.flags, F_KEEP) then return FORGET, t.at + extra(t).keep end
  return ENDED, t.at
end

-- Those that were cancelled or expired are few among what succeeded on the same shelf: they are in a set of their own besides.
local function is_stopped(state) return state == CANCELLED or state == EXPIRED end

local function enter(t)
  local state, row = t.state, t.row
  count(t.queue, state, 1)
  if state == READY then
    -- What an older version has pushed finds its key here, when it comes back from elsewhere.
    if has(t.flags, F_EXTRA) and not has(t.flags, F_KEYED) and look_up().aged and extra(t).key then
      t.flags = bor(t.flags, F_KEYED)
    end
    put_ready(t.queue, t.name, key_of(t), row, t.rank)
    fresh[t.queue] = (fresh[t.queue] or 0) + 1
  elseif state == SCHEDULED then
    put(P .. 'due:' .. t.queue, row, t.at)
    if not early[t.queue] or t.at < early[t.queue] then early[t.queue] = t.at end
  elseif state == IS_PARKED then
    put(PARKED, row, t.parked or now)
    call('SADD', P .. 'parked:' .. t.name, row)
  else
    local key, score = shelf(t)
    put(key, row, score)
    if is_stopped(state) then put(P .. 'stopped', row, score) end
  end
  if has(t.flags, F_EXPIRES) and waits(state) then put(EXPIRES, row, tonumber(extra(t).expires)) end
  save(t)
end

local function leave(t)
  local state, row = t.state, t.row
  if state <= IS_PARKED or state == IS_DEAD then count(t.queue, state, -1) end
  if state == READY then
    put_ready(t.queue, t.name, key_of(t), row, false)
  elseif state == SCHEDULED then
    put(P .. 'due:' .. t.queue, row, false)
  elseif state == RUNNING then
    put(LEASE, row, false)
    if counts_running() then runs(t.queue, t.name, key_of(t), -1) end
    if has(t.flags, F_CANCEL) then
      call('SREM', P .. 'cancel:' .. t.node, row)
      t.flags = without(t.flags, F_CANCEL)
    end
  elseif state == IS_PARKED then
    put(PARKED, row, false)
    call('SREM', P .. 'parked:' .. t.name, row)
  else
    put(shelf(t), row, false)
    if is_stopped(state) then put(P .. 'stopped', row, false) end
  end
  if has(t.flags, F_EXPIRES) and waits(state) then put(EXPIRES, row, false) end
end

local function set_ready_at(t, ready_at)
  t.rank = ready_at - t.priority * AGING
end

-- Whether the store is closed: nothing is started and no schedule fires.
local function is_closed() return call('HEXISTS', P .. 'paused', 'closed') == 1 end

local function is_paused(queue)
  local paused = call('HMGET', P .. 'paused', 'q ' .. queue, 'closed')
  return paused[1] or paused[2]
end

-- Wakes claims that wait for a queue, the longest waiting first, until those that take every name can hold `amount`.
-- Whoever listens no more is passed over.
local function ring(queue, amount)
  local key = P .. 'wait:' .. queue
  local waiting = call('ZRANGE', key, 0, 31)
  if #waiting == 0 or is_paused(queue) then return end
  while #waiting > 0 do
    for i = 1, #waiting do
      local handle, claim, max, picky = string.match(waiting[i], '^(%S+) (%S+) (%S+) (%S+)$')
      call('ZREM', key, waiting[i])
      local heard = handle and call('PUBLISH', P .. 'bell:' .. handle, claim .. ' ' .. queue) or 0
      if heard > 0 and picky == '0' then amount = amount - tonumber(max) end
      if amount <= 0 then return end
    end
    waiting = call('ZRANGE', key, 0, 31)
  end
end

local function ready_in(queue) return tonumber(call('HGET', P .. 'counts', queue .. ' ' .. READY) or 0) end

-- Wakes claims for so many of the tasks that are ready, at most.
local function ring_ready(queue, most)
  local amount = math.min(ready_in(queue), most)
  if amount > 0 then ring(queue, amount) end
end

local function ring_everybody(most)
  for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do ring_ready(queue, most) end
end

local function publish_ended()
  if #ended == 0 or call('EXISTS', P .. 'watch') == 0 then return end
  local deadlines = ask_many('ZMSCORE', P .. 'watch', ended)
  for i = 1, #ended do
    if deadlines[i] then
      call('ZREM', P .. 'watch', ended[i])
      call('PUBLISH', P .. 'ends', ended[i])
    end
  end
end

-- There are tasks in these lanes: the names of a queue that have some are in a set, and the keys of a name in one by key.
local function open_lanes(keys)
  local names, members = {}, {}
  for i = 1, #keys do
    local queue, name, key = unpack(lanes[keys[i]], 1, 3)
    local set = P .. (key and 'names:' or 'lanes:') .. queue
    names[set] = names[set] or {}
    names[set][#names[set] + 1] = name
    if key then
      local of_name = P .. 'keys:' .. queue .. ' ' .. name
      local list = members[of_name] or {}
      members[of_name] = list
      list[#list + 1] = '0'
      list[#list + 1] = key
    end
  end
  for set, of_set in pairs(names) do many('SADD', set, of_set) end
  for of_name, list in pairs(members) do many('ZADD', of_name, list) end
end

-- There may be none any more.
local function close_lane(lane_key)
  if call('EXISTS', lane_key) == 1 then return end
  local queue, name, key = unpack(lanes[lane_key], 1, 3)
  if not key then
    call('SREM', P .. 'lanes:' .. queue, name)
    return
  end
  local of_name = P .. 'keys:' .. queue .. ' ' .. name
  call('ZREM', of_name, key)
  if call('EXISTS', of_name) == 0 then call('SREM', P .. 'names:' .. queue, name) end
end

-- Writes everything. What needs memory comes first: when there is none, nothing has been changed.
local function flush()
  if #order > 0 then
    local values = {}
    for i = 1, #order do
      values[2 * i - 1] = order[i]
      values[2 * i] = raw[order[i]]
    end
    many('HSET', TASK, values)
  end
  if #bodies > 0 then many('HSET', BODY, bodies) end
  if #ids_new > 0 then many('HSET', ID, ids_new) end
  local soon = {}
  for queue, at in pairs(early) do
    local first = call('ZRANGE', P .. 'due:' .. queue, 0, 0, 'WITHSCORES')
    soon[queue] = not first[2] or at < tonumber(first[2])
  end
  local touched, opened = {}, {}
  for key, scores in pairs(zsets) do
    local added, removed = {}, {}
    for row, score in pairs(scores) do
      if score then
        added[#added + 1] = score
        added[#added + 1] = row
      else
        removed[#removed + 1] = row
      end
    end
    if #added > 0 then many('ZADD', key, added) end
    if lanes[key] and #added > 0 then opened[#opened + 1] = key end
    touched[#touched + 1] = { key, removed, #added }
  end
  open_lanes(opened)
  for i = 1, #touched do
    local key, removed, added = touched[i][1], touched[i][2], touched[i][3]
    if #removed > 0 then many('ZREM', key, removed) end
    if lanes[key] and added == 0 then close_lane(key) end
  end
  for queue, states in pairs(counts) do
    for state, by in pairs(states) do
      if by ~= 0 then call('HINCRBY', P .. 'counts', queue .. ' ' .. state, by) end
    end
  end
  for queue in pairs(queues) do call('SADD', P .. 'queues', queue) end
  for block, by in pairs(blocks) do
    if by ~= 0 and call('HINCRBY', P .. 'blocks', block, by) <= 0 then call('HDEL', P .. 'blocks', block) end
  end
  local more = next(ran) and count_running() or {}
  for queue, amount in pairs(fresh) do ring(queue, amount) end
  for queue, amount in pairs(more) do
    if queue == '' then ring_everybody(amount) else ring_ready(queue, amount) end
  end
  for queue, is_first in pairs(soon) do
    if is_first then ring(queue, 1) end
  end
  publish_ended()
  order, changed, bodies, ids_new, zsets, counts, blocks, queues = {}, {}, {}, {}, {}, {}, {}, {}
  fresh, early, ended = {}, {}, {}
end

