-- Taking rows from lanes and leasing them. Part of `claim`.

-- The first rows of several lanes together by rank, and of which lanes they are, with how many of each are `used`. A lane
-- whose gates let no more pass is left alone.
local function merged(open, most)
  local chunk = math.max(LOOK, math.ceil(2 * most / #open))
  local function refill(head)
    head.rows = call('ZRANGE', head.key, head.read, head.read + chunk - 1)
    head.next = 1
    head.read = head.read + #head.rows
    fetch(head.rows)
  end
  local function look(head)
    head.row, head.rank = head.rows[head.next], nil
    if not head.row and #head.rows == chunk then
      refill(head)
      head.row = head.rows[1]
    end
    if not head.row then return end
    local packed = raw[head.row]
    if not packed then
      head.rank = -math.huge
    else
      local _, _, _, _, _, _, _, _, rank = struct.unpack(FORM, packed)
      head.rank = rank
    end
  end
  for i = 1, #open do
    open[i].read, open[i].used = 0, 0
    refill(open[i])
    look(open[i])
  end
  local rows, owners = {}, {}
  while #rows < most do
    local best = nil
    for i = 1, #open do
      local head = open[i]
      if head.rank and (not best or head.rank < best.rank or (head.rank == best.rank and head.row < best.row)) then
        if not head.gates or room_of(head) > 0 then best = head else head.rank = nil end
      end
    end
    if not best then break end
    rows[#rows + 1], owners[#owners + 1] = best.row, best
    best.used, best.next = best.used + 1, best.next + 1
    if best.gates then pass(best, 1) end
    look(best)
  end
  return rows, owners
end

-- The first rows of lanes, at most so many, and the lane of each. What has expired is left to `hand_out`.
local function first_of(open, most)
  if #open == 0 then return {}, {} end
  if #open > 1 then return merged(open, most) end
  local only, owners = open[1], {}
  if only.gates then most = math.min(most, room_of(only)) end
  local rows = only.first or call('ZRANGE', only.key, 0, most - 1)
  only.first = nil
  while #rows > most do rows[#rows] = nil end
  fetch(rows)
  only.used = #rows
  if only.gates then pass(only, #rows) end
  for i = 1, #rows do owners[i] = only end
  return rows, owners
end

-- Reads the first tasks of participants with one lane each, all at once; `shares` are those of `line`.
local function read_ahead(line, shares, known)
  local all = {}
  for i = 1, #line do
    local only = known[line[i]][1]
    if shares[i] > 0 and #known[line[i]] == 1 and not only.first then
      only.first = call('ZRANGE', only.key, 0, math.min(shares[i], room_of(only)) - 1)
      for r = 1, #only.first do all[#all + 1] = only.first[r] end
    end
  end
  fetch(all)
end

-- Takes what was handed out from the beginning of its lanes, and what must stay into its place again.
local function clear(queue, key, rows, owners, kept)
  local is_done = {}
  for i = 1, #owners do
    local owner = owners[i]
    if not is_done[owner] then
      is_done[owner] = true
      call('ZREMRANGEBYRANK', owner.key, 0, owner.used - 1)
    end
  end
  if key then
    keyed_gone[queue] = keyed_gone[queue] or {}
    local stays, gone = {}, keyed_gone[queue]
    for i = 2, #kept, 3 do stays[kept[i]] = true end
    for i = 1, #rows do
      if not stays[rows[i]] then gone[#gone + 1] = rows[i] end
    end
  end
  for i = 1, #kept, 3 do
    call('ZADD', kept[i + 2].key, kept[i], kept[i + 1])
  end
  for owner in pairs(is_done) do close_lane(owner.key) end
end

-- What a task that is not plain leaves behind when it starts; answers whether it starts at all, its flags, and whether the
-- caller must end it instead.
local function begin_to_run(row, flags)
  if has(flags, F_EXPIRES) then
    local t = task(row)
    if tonumber(extra(t).expires) <= now then
      if has(flags, F_FLOW) then return false, flags, true end
      leave(t)
      finish(t, EXPIRED, '', '')
      return false, flags, false
    end
    put(EXPIRES, row, false)
  end
  if has(flags, F_STORY) then call('HDEL', P .. 'progress', row) end
  if has(flags, F_STARTED) then give_back_key(task(row)) end
  if has(flags, F_AWAITS) then
    call('HDEL', P .. 'waits', row)
    flags = without(flags, F_AWAITS)
  end
  if has(flags, F_MEMO) then memos[row] = true end
  return true, flags, false
end

-- Hands out rows that are the first of their lanes; answers how many were taken.
local function hand_out(queue, key, rows, owners)
  local kept, before = {}, #taken
  local until_ = string.format('%.0f', now + lease)
  for i = 1, #rows do
    local row = rows[i]
    local packed = raw[row]
    local starts, is_kept = false, false
    if packed then
      local state, priority, flags, reason, attempt, crashes, fence, _, rank, enqueued, _, from, name, _, id, body_at =
        struct.unpack(FORM, packed)
      -- One that an older version has put into a wrong lane may have gone elsewhere since.
      starts = state == READY
      if starts and flags ~= 0 then starts, flags, is_kept = begin_to_run(row, flags) end
      if starts then
        packed = struct.pack(FORM, RUNNING, priority, flags, reason, attempt + 1, crashes, fence + 1, 0, rank, enqueued,
          now, from, name, node, id) .. string.sub(packed, body_at)
        if has(flags, F_LARGE) then large[#large + 1] = row end
        raw[row] = packed
        tasks[#tasks + 1] = row
        tasks[#tasks + 1] = packed
        leases[#leases + 1] = until_
        leases[#leases + 1] = row
        taken[#taken + 1] = row
      elseif is_kept then
        -- It stays where it is until the caller has ended it.
        late[#late + 1] = row
        kept[#kept + 1] = rank
        kept[#kept + 1] = row
        kept[#kept + 1] = owners[i]
      end
    end
    if not starts and owners[i].gates then pass(owners[i], -1) end
  end
  local held = #taken - before
  if held > 0 then
    count(queue, READY, -held)
    count(queue, RUNNING, held)
  end
  clear(queue, key, rows, owners, kept)
  return held
end

-- Writes down who has what was handed out.
local function write_taken()
  if #taken > 0 then
    many('HSET', TASK, tasks)
    many('ZADD', LEASE, leases)
  end
  for queue, rows in pairs(keyed_gone) do many('ZREM', P .. 'keyed:' .. queue, rows) end
end

-- From a queue that nothing shares: its first tasks, whatever they are.
local function take_from(queue)
  local again = true
  while again and room > 0 do
    again = false
    local open = {}
    for _, name in ipairs(call('SMEMBERS', P .. 'lanes:' .. queue)) do
      if not blocked[name] then open[#open + 1] = { key = lane(queue, name) } end
    end
    local rows, heads = first_of(open, room)
    if #rows > 0 then
      local skipped, full = #late, #rows == room
      local held = hand_out(queue, nil, rows, heads)
      room = room - held
      -- What had expired gave its room back, except for what the caller must end first.
      again = full and held < #rows and #late == skipped
    end
  end
end

-- Up to `share` tasks of a participant. Answers how many.
local function take_of(queue, key, share, of_key)
  local got, again = 0, true
  while again and got < share do
    again = false
    local open = {}
    for _, of_lane in ipairs(of_key) do
      if room_of(of_lane) > 0 then open[#open + 1] = of_lane end
    end
    local rows, heads = first_of(open, share - got)
    if #rows > 0 then
      local skipped = #late
      local held = hand_out(queue, key, rows, heads)
      got = got + held
      again = held < #rows and #late == skipped
    end
  end
  return got
end
