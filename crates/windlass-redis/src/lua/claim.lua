-- Takes ready tasks and leases them.
--
-- ARGV from 5: node, lease, most, the waiting claim (empty when it does not wait), whether it has waited before (`1`), the
-- number of queues, the queues, names that are left to others. The waiting claim is `handle number most picky`.
--
-- Answers how many were taken, microseconds until the next one falls due (-1 for none), then row, packed task and large body
-- of each; then, for each task that has expired and whose body says what follows, the same: the caller ends it.

local node, lease, most = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local waiting, waited, amount = ARGV[8], ARGV[9] == '1', tonumber(ARGV[10])
local LOOK = 8

local blocked, paused_queues, closed = {}, {}, false
local paused = call('HKEYS', P .. 'paused')
for i = 1, #paused do
  local kind, name = string.match(paused[i], '^(%S) (%S+)$')
  if kind == 'q' then
    paused_queues[name] = true
  elseif kind == 'n' then
    blocked[name] = true
  else
    closed = true
  end
end
for i = 11 + amount, #ARGV do blocked[ARGV[i]] = true end

local taken, large, late = {}, {}, {}

-- Takes the first rows of a lane that is the only one; what has expired is left to `hand_out`.
local function first_of(key, room)
  local rows = call('ZRANGE', key, 0, room - 1)
  fetch(rows)
  return rows
end

-- The first rows of several lanes together, and how many of each.
local function merged(keys, room)
  local heads = {}
  local chunk = math.max(LOOK, math.ceil(2 * room / #keys))
  local function refill(head)
    head.rows = call('ZRANGE', head.key, head.read, head.read + chunk - 1)
    head.next = 1
    head.read = head.read + #head.rows
    fetch(head.rows)
  end
  local function rank_of(head)
    local row = head.rows[head.next]
    if not row and #head.rows == chunk then
      refill(head)
      row = head.rows[head.next]
    end
    if not row then return nil end
    local packed = raw[row]
    if not packed then return -math.huge, row end
    local _, _, _, _, _, _, _, _, rank = struct.unpack(FORM, packed)
    return rank, row
  end
  for i = 1, #keys do
    heads[i] = { key = keys[i], read = 0, used = 0 }
    refill(heads[i])
    heads[i].rank, heads[i].row = rank_of(heads[i])
  end
  local rows = {}
  while #rows < room do
    local best = nil
    for i = 1, #heads do
      local head = heads[i]
      if head.rank and (not best or head.rank < best.rank or (head.rank == best.rank and head.row < best.row)) then
        best = head
      end
    end
    if not best then break end
    rows[#rows + 1] = best.row
    best.used = best.used + 1
    best.next = best.next + 1
    best.rank, best.row = rank_of(best)
  end
  return rows, heads
end

-- Leases rows that are the first of their lanes; answers how many were taken.
local function hand_out(queue, rows)
  local tasks, leases, gone, kept = {}, {}, {}, {}
  local until_ = string.format('%.0f', now + lease)
  local before = #taken
  for i = 1, #rows do
    local row = rows[i]
    local packed = raw[row]
    if packed then
      local _, priority, flags, reason, attempt, crashes, fence, _, rank, enqueued, _, from, name, _, id, body_at =
        struct.unpack(FORM, packed)
      local expired = false
      if flags ~= 0 then
        if has(flags, F_EXPIRES) then
          local t = task(row)
          expired = tonumber(extra(t).expires) <= now
          if expired and has(flags, F_FLOW) then
            -- It stays where it is until the caller has ended it.
            late[#late + 1] = row
            kept[#kept + 1] = rank
            kept[#kept + 1] = row
          elseif expired then
            leave(t)
            finish(t, EXPIRED, '', '')
          else
            put(EXPIRES, row, false)
          end
        end
        if not expired and has(flags, F_STORY) then call('HDEL', P .. 'progress', row) end
      end
      if not expired then
        packed = struct.pack(FORM, RUNNING, priority, flags, reason, attempt + 1, crashes, fence + 1, 0, rank, enqueued,
          now, from, name, node, id) .. string.sub(packed, body_at)
        if has(flags, F_LARGE) then large[#large + 1] = row end
        raw[row] = packed
        tasks[#tasks + 1] = row
        tasks[#tasks + 1] = packed
        leases[#leases + 1] = until_
        leases[#leases + 1] = row
        taken[#taken + 1] = row
      end
    end
  end
  local held = #taken - before
  if held > 0 then
    many('HSET', TASK, tasks)
    many('ZADD', LEASE, leases)
    count(queue, READY, -held)
    count(queue, RUNNING, held)
  end
  return held, kept
end

local room, alarm = most, -1
for i = 11, 10 + amount do
  local queue = ARGV[i]
  if not closed and not paused_queues[queue] and room > 0 then
    if promote(queue, 1000) > 0 then
      -- What is promoted here is for this claim; others that wait have an alarm of their own.
      fresh[queue] = nil
      flush()
    end
    local again = true
    while again and room > 0 do
      again = false
      local names = call('SMEMBERS', P .. 'lanes:' .. queue)
      local keys = {}
      for n = 1, #names do
        if not blocked[names[n]] then keys[#keys + 1] = lane(queue, names[n]) end
      end
      local rows, heads = {}, {}
      if #keys == 1 then
        rows = first_of(keys[1], room)
        heads[1] = { key = keys[1], used = #rows }
      elseif #keys > 1 then
        rows, heads = merged(keys, room)
      end
      if #rows > 0 then
        local skipped = #late
        local held, kept = hand_out(queue, rows)
        local full = #rows == room
        room = room - held
        for h = 1, #heads do
          local head = heads[h]
          if head.used > 0 then
            call('ZREMRANGEBYRANK', head.key, 0, head.used - 1)
            if #kept == 0 and call('EXISTS', head.key) == 0 then
              call('SREM', P .. 'lanes:' .. queue, lanes[head.key][2])
            end
          end
        end
        for k = 1, #kept, 2 do
          local t = task(kept[k + 1])
          call('ZADD', lane(queue, t.name), kept[k], kept[k + 1])
        end
        -- What had expired gave its room back, except for what the caller must end first.
        again = full and held < #rows and #late == skipped
      end
    end
  end
end
flush()

if waiting ~= '' then
  for i = 11, 10 + amount do
    local queue = ARGV[i]
    local key = P .. 'wait:' .. queue
    if #taken == 0 then
      if #late == 0 then
        call('ZADD', key, now, waiting)
        -- Every claim that waits looks again each second; what is older was left behind by a process that is gone.
        call('PEXPIRE', key, 120000)
      end
    elseif waited then
      call('ZREM', key, waiting)
      -- It may have been woken for a task that it has not taken.
      local left = 0
      for _, name in ipairs(call('SMEMBERS', P .. 'lanes:' .. queue)) do
        left = left + call('ZCARD', P .. 'ready:' .. queue .. ' ' .. name)
      end
      if left > 0 then ring(queue, left) end
    end
    if #taken == 0 and not closed and not paused_queues[queue] then
      local first = call('ZRANGE', P .. 'due:' .. queue, 0, 0, 'WITHSCORES')
      if first[2] then
        local after = math.max(tonumber(first[2]) - now, 0)
        if alarm < 0 or after < alarm then alarm = after end
      end
    end
  end
end

local answer = { #taken, alarm }
local found, bodies_of = ask_many('HMGET', BODY, large), {}
for i = 1, #large do bodies_of[large[i]] = found[i] end
for i = 1, #taken do
  local at, row = 3 * i, taken[i]
  answer[at], answer[at + 1], answer[at + 2] = row, raw[row], bodies_of[row] or false
end
for i = 1, #late do
  local t = task(late[i])
  answer[#answer + 1] = t.row
  answer[#answer + 1] = raw[t.row]
  answer[#answer + 1] = large_body(t)
end
return answer
