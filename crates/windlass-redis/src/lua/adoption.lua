-- Adopting deliveries. Part of `adopt`.

local MALFORMED = 2

-- The names of notes whose time has not passed.
local function living_notes(names)
  local living, texts = {}, ask_many('HMGET', P .. 'note', names)
  for i = 1, #names do
    local ends = texts[i] and string.match(texts[i], '^%S+ (%S+) ')
    if ends and tonumber(ends) > now then living[names[i]] = true end
  end
  return living
end

local function forget_notes(names)
  if #names == 0 then return end
  many('HDEL', P .. 'note', names)
  many('ZREM', P .. 'notes', names)
  many('ZREM', P .. 'note_ends', names)
end

-- Writes notes that are kept for so long, whatever was there; `notes` is name and value in turn. They get their places among
-- the others with the next tick (`place_new_notes`): nearly all of them are forgotten before.
local function write_notes(notes, ttl)
  if #notes == 0 then return end
  local version, ends = new_numbers('note_version', #notes / 2), string.format(' %.0f ', now + ttl)
  local texts, names = {}, {}
  for i = 1, #notes, 2 do
    version = version + 1
    texts[i], texts[i + 1] = notes[i], string.format('%.0f', version) .. ends .. notes[i + 1]
    names[#names + 1] = notes[i]
  end
  many('HSET', P .. 'note', texts)
  call('RPUSH', P .. 'new_notes', table.concat(names, '\n'))
end

-- Forgets a task that has ended.
local function forget_ended(t)
  -- It may have been stored by this very script: then it is written first.
  if changed[t.row] then flush() end
  put(shelf(t), t.row, false)
  remove({ t.row })
end

-- Stores the task of a delivery under this row; answers what `push` answers, and whether the taker has it.
local function adopt_one(row, at, flaw, free, taker)
  local id, queue, name, priority, due, more, body =
    ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local before = row_of(id)
  local t = before and task(before)
  if t and t.state <= IS_PARKED then return id end
  if flaw ~= '' then
    if t then forget_ended(t) end
    call('HSET', P .. 'failure', row, flaw)
    add(row, id, queue, name, priority, '', more, body, IS_DEAD, MALFORMED)
    local letter = task(row)
    letter.flags = bor(letter.flags, F_STORY)
    save(letter)
    ended[#ended + 1] = id
    return false
  end
  local guard = string.find(more, '"guard"', 1, true) and cjson.decode(more).guard
  local in_the_way = guard and holder(guard)
  if in_the_way then
    if in_the_way ~= id and replace(in_the_way, priority, due, more, body) then return { in_the_way } end
    return in_the_way
  end
  local of_queue = free[queue]
  if of_queue then
    if of_queue.places == 0 then return of_queue.limit end
    of_queue.places = of_queue.places - 1
  end
  if t then forget_ended(t) end
  return false, add(row, id, queue, name, priority, due, more, body, READY, nil, taker)
end

-- An id as JSON, which is what the note of a delivery says.
local function quoted(id)
  return string.find(id, '["\\]') and cjson.encode(id) or '"' .. id .. '"'
end

-- Adopts what is in ARGV[first] on: how long deliveries are remembered, how many are forgotten, their notes; how many there
-- are, then note and flaw of each, then what `push` takes of each. A flaw is a failure, or empty.
--
-- Answers for each what `push` answers, or -1 when it is known; the queues of the rows that were stored; how many became
-- ready, by queue: nobody is woken for those; what the taker has: the time, the row before that of the first delivery, and
-- the places of its deliveries.
local function adopt_deliveries(first, taker)
  local ttl, forgotten, gone = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), {}
  for i = 1, forgotten do gone[i] = ARGV[first + 1 + i] end
  forget_notes(gone)
  local amount = tonumber(ARGV[first + 2 + forgotten])
  local notes = first + 3 + forgotten
  local tasks = notes + 2 * amount
  local names, wanted, answers, remembered, stored = {}, {}, {}, {}, {}
  for i = 1, amount do names[i], wanted[i] = ARGV[notes + 2 * (i - 1)], ARGV[tasks + 7 * (i - 1)] end
  local known, rows, there = living_notes(names), ask_many('HMGET', ID, wanted), {}
  for i = 1, amount do
    ids[wanted[i]] = rows[i]
    if rows[i] then there[#there + 1] = rows[i] end
  end
  fetch(there)
  local free, last = free_places(tasks, amount), amount > 0 and new_rows(amount) or 0
  local begun = { now_text, string.format('%.0f', last) }
  for i = 1, amount do
    local name = names[i]
    if known[name] then
      answers[i] = -1
    else
      local id, row = wanted[i], row_text(last + i)
      local answer, begins = adopt_one(row, tasks + 7 * (i - 1), ARGV[notes + 2 * (i - 1) + 1], free, taker)
      if begins then begun[#begun + 1] = i end
      local becomes = type(answer) == 'table' and answer[1] or answer
      answers[i] = answer
      if not answer then stored[row] = ARGV[tasks + 7 * (i - 1) + 1] end
      if becomes ~= id and type(becomes) ~= 'number' then
        known[name] = true
        remembered[#remembered + 1] = name
        remembered[#remembered + 1] = quoted(becomes or id)
      end
    end
  end
  write_notes(remembered, ttl)
  local ready = fresh
  fresh = {}
  if taker then
    many('HSET', TASK, taker.tasks)
    many('ZADD', LEASE, taker.leases)
  end
  flush()
  return answers, stored, ready, begun
end
