-- New tasks ----------------------------------------------------------------------------------------------------------

-- So many numbers of a kind; the first is the answer plus one. A store that was emptied begins beyond what it had: an old
-- receipt must not fit a new task, nor an old version a new note.
local function new_numbers(kind, amount)
  local last = call('INCRBY', P .. kind, amount)
  if last == amount then
    last = math.floor(now / 100) + amount
    call('SET', P .. kind, string.format('%.0f', last))
  end
  return last - amount
end

local function new_rows(amount) return new_numbers('seq', amount) end

-- Who has a unique key now.
local function holder(key)
  local taken = call('HGET', P .. 'taken', key)
  if not taken then return nil end
  local till, id = string.match(taken, '^(%S+) (.+)$')
  if till ~= '0' and tonumber(till) <= now then return nil end
  return id
end

local function take_key(more, id, since)
  if more.window then
    local till = string.format('%.0f', (since or now) + more.window)
    call('HSET', P .. 'taken', more.guard, till .. ' ' .. id)
    call('ZADD', P .. 'windows', till, more.guard)
  else
    call('HSET', P .. 'taken', more.guard, '0 ' .. id)
  end
end

local function give_back_key(t)
  local more = extra(t)
  if not more.window and call('HGET', P .. 'taken', more.guard) == '0 ' .. t.id then
    call('HDEL', P .. 'taken', more.guard)
  end
end

-- When a task may start: empty for now, `+` and microseconds for a delay, or a time.
local function due_at(due)
  if due == '' then return nil end
  local at = tonumber(due)
  if string.sub(due, 1, 1) == '+' then at = now + at end
  if at > now then return at end
  return nil
end

-- Gives a task another body.
local function set_body(t, body)
  if #body > SHORT_BODY then
    bodies[#bodies + 1] = t.row
    bodies[#bodies + 1] = body
    t.body, t.flags = '', bor(t.flags, F_LARGE)
    return
  end
  if has(t.flags, F_LARGE) then call('HDEL', BODY, t.row) end
  t.body, t.flags = body, without(t.flags, F_LARGE)
end

-- Stores the parts that most tasks lack; answers them and the flags.
local function add_extra(row, flags, text)
  local more = cjson.decode(text)
  extras[row] = more
  if more.flow then flags = bor(flags, F_FLOW) end
  if more.mute then flags = bor(flags, F_MUTE) end
  if more.keep then flags = bor(flags, F_KEEP) end
  if more.expires then flags = bor(flags, F_EXPIRES) end
  if more.guard then flags = bor(flags, F_GUARD) end
  if more.started then flags = bor(flags, F_STARTED) end
  if more.key then flags = bor(flags, F_KEYED) end
  if more.keep or more.expires or more.guard or more.key or more.workflow then
    call('HSET', P .. 'extra', row, text)
    flags = bor(flags, F_EXTRA)
  end
  if more.key then call('SADD', P .. 'key:' .. more.key, row) end
  if more.workflow then call('SADD', P .. 'flow:' .. more.workflow, row) end
  return flags
end

-- Adds a task that is in `state` since it was pushed. Its unique key, if it has one, is free. A task that nothing stands in
-- the way of begins at once when there is a `taker`; answers whether it does.
local function add(row, id, queue, name, priority, due, more, body, state, reason, taker)
  local flags, at, ready_at = 0, 0, now
  if more ~= '' then flags = add_extra(row, 0, more) end
  if state == READY then
    local later = due_at(due)
    if later then state, at, ready_at = SCHEDULED, later, later end
  else
    at = now
  end
  if has(flags, F_GUARD) and waits(state) then take_key(extras[row], id) end
  ids[id] = row
  ids_new[#ids_new + 1] = id
  ids_new[#ids_new + 1] = row
  if #body > SHORT_BODY then
    bodies[#bodies + 1] = row
    bodies[#bodies + 1] = body
    body, flags = '', bor(flags, F_LARGE)
  end
  queues[queue] = true
  local block = string.sub(row, 1, 11)
  blocks[block] = (blocks[block] or 0) + 1
  local rank = ready_at - priority * AGING
  if state == READY and not has(flags, F_EXPIRES) then
    -- What nearly every task is: without a table for it.
    if taker and taker.queues[queue] and not taker.except[name] and not has(flags, F_KEYED + F_STARTED) then
      local node, tasks, leases = taker.node, taker.tasks, taker.leases
      local at = #tasks
      raw[row] = struct.pack(FORM, RUNNING, priority, flags, NO_REASON, 1, 0, 1, 0, rank, now, now, queue, name, node, id) .. body
      tasks[at + 1], tasks[at + 2], leases[at + 1], leases[at + 2] = row, raw[row], taker.till, row
      count(queue, RUNNING, 1)
      return true
    end
    keep(row, struct.pack(FORM, READY, priority, flags, NO_REASON, 0, 0, 0, 0, rank, now, 0, queue, name, '', id) .. body)
    if not rank_texts[priority] then rank_texts[priority] = string.format('%.0f', rank) end
    put_ready(queue, name, has(flags, F_KEYED) and extras[row].key or nil, row, rank_texts[priority])
    count(queue, READY, 1)
    fresh[queue] = (fresh[queue] or 0) + 1
    return false
  end
  enter({ row = row, state = state, priority = priority, flags = flags, reason = reason or NO_REASON, attempt = 0,
    crashes = 0, fence = 0, at = at, rank = rank, enqueued = now, started = 0, queue = queue, name = name, node = '',
    id = id, body = body })
  return false
end

-- The task that has the id or the unique key of a new one.
local function conflict(id, more)
  if row_of(id) then return id end
  if string.find(more, '"guard"', 1, true) then
    local guard = cjson.decode(more).guard
    if guard then return holder(guard) end
  end
  return nil
end

-- Gives arguments, headers and priority of a new task to the one that has its unique key and waits; answers whether it does.
-- Bodies are nobody's business here: the new one is kept behind the old one, after a zero that no JSON has, and whoever reads
-- them takes from each what counts.
local function replace(id, priority, due, more, body)
  local how = string.find(more, '"conflict"', 1, true) and cjson.decode(more).conflict
  local row = how and row_of(id)
  local t = row and task(row)
  if not t or (t.state ~= SCHEDULED and t.state ~= READY) then return false end
  local ready_at = t.rank + t.priority * AGING
  local at = t.state == SCHEDULED and t.at > now and t.at or nil
  -- It may have been stored by this very script: then its body is written first.
  if changed[row] then flush() end
  local before = large_body(t) or t.body
  leave(t)
  if how == 'debounce' then
    at = due_at(due)
    local window = cjson.decode(more).window
    if at and window then at = math.min(at, t.enqueued + window) end
    if at and at <= now then at = nil end
    ready_at = at or now
  end
  set_body(t, string.match(before, '^[^%z]*') .. '\0' .. body)
  t.priority, t.state, t.at = priority, at and SCHEDULED or READY, at or 0
  set_ready_at(t, ready_at)
  enter(t)
  return true
end

-- How many places are free in each queue that has a length, of those that so many new tasks from ARGV[first] on want.
local function free_places(first, amount)
  local free = {}
  if not look_up().length then return free end
  for i = 1, amount do
    local queue = ARGV[first + 7 * (i - 1) + 1]
    if free[queue] == nil then
      local subject = 'queue:' .. queue
      learn({ subject })
      local length = rules[subject] and rules[subject].length
      free[queue] = false
      if length then
        local waiting = call('HMGET', P .. 'counts', queue .. ' ' .. SCHEDULED, queue .. ' ' .. READY, queue .. ' ' .. IS_PARKED)
        local places = length
        for each = 1, 3 do places = places - tonumber(waiting[each] or 0) end
        free[queue] = { limit = length, places = math.max(places, 0), wanted = 0 }
      end
    end
    if free[queue] then free[queue].wanted = free[queue].wanted + 1 end
  end
  return free
end

-- How long a group that nobody arrives at is kept.
local UNFINISHED_KEPT = 35 * 86400 * 1000000

local function create_group(new)
  local key = P .. 'group:' .. new.id
  if call('EXISTS', key) == 1 then return end
  call('HSET', key, 'size', new.size, 'policy', new.policy, 'succeeded', 0, 'failed', 0, 'phase', 'open', 'after',
    cjson.encode(new.after))
  call('ZADD', P .. 'groups', now + math.max(KEEP_DEAD, UNFINISHED_KEPT), new.id)
  call('ZADD', P .. 'open', now, new.id)
end

-- Stores tasks from ARGV[first] on: id, queue, name, priority, due, extra and body of each, with groups as JSON or empty.
-- Answers for each false, the id of the task that is in its way, a list with the id of the task that it has replaced, or
-- the length of its queue, which is full.
local function push(groups, first, amount)
  local wanted, answers = {}, {}
  for i = 1, amount do wanted[i] = ARGV[first + 7 * (i - 1)] end
  local known = ask_many('HMGET', ID, wanted)
  for i = 1, amount do ids[wanted[i]] = known[i] end
  local free = free_places(first, amount)
  if groups ~= '' then
    for _, of_queue in pairs(free) do
      if of_queue and of_queue.wanted > of_queue.places then
        -- A group of which members are missing would be waited for without end.
        for i = 1, amount do answers[i] = of_queue.limit end
        return answers
      end
    end
  end
  -- The first write: without memory it fails, and nothing has been changed.
  local last = amount > 0 and new_rows(amount)
  if groups ~= '' then
    for _, new in ipairs(cjson.decode(groups)) do create_group(new) end
  end
  for i = 1, amount do
    local at = first + 7 * (i - 1)
    local id, queue, priority, due, more, body =
      ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
    local in_the_way, of_queue = conflict(id, more), free[queue]
    if in_the_way then
      answers[i] = in_the_way
      if in_the_way ~= id and replace(in_the_way, priority, due, more, body) then answers[i] = { in_the_way } end
    elseif of_queue and of_queue.places == 0 then
      answers[i] = of_queue.limit
    else
      if of_queue then of_queue.places = of_queue.places - 1 end
      add(row_text(last + i), id, queue, ARGV[at + 2], priority, due, more, body, READY)
      answers[i] = false
    end
  end
  return answers
end

-- Ends --------------------------------------------------------------------------------------------------------------

local function tell(t, part, text)
  call('HSET', P .. part, t.row, text)
  t.flags = bor(t.flags, F_STORY)
end

-- Writes a failed attempt down: number, node, begin, end and the failure, a line for each; the newest are kept.
local function remember(t, failure)
  local line = string.format('%d\t%s\t%.0f\t%.0f\t%s', t.attempt, t.node, t.started, now, failure)
  local before = has(t.flags, F_STORY) and call('HGET', P .. 'history', t.row)
  if before then
    local _, lines = string.gsub(before, '\n', '')
    while lines + 1 >= HISTORY_MAX do
      before = string.sub(before, string.find(before, '\n', 1, true) + 1)
      lines = lines - 1
    end
    line = before .. '\n' .. line
  end
  tell(t, 'history', line)
  tell(t, 'failure', failure)
end

-- It waits for no signal any more.
local function wait_no_more(t)
  if not has(t.flags, F_AWAITS) then return end
  call('HDEL', P .. 'waits', t.row)
  t.flags = without(t.flags, F_AWAITS)
end

-- Adds lines to what a task remembers.
local function add_to_memo(t, lines)
  call('APPEND', P .. 'memo:' .. t.row, lines)
  t.flags = bor(t.flags, F_MEMO)
end

local function memo_size(t)
  return has(t.flags, F_MEMO) and call('STRLEN', P .. 'memo:' .. t.row) or 0
end

-- Ends a task that has left its place.
local function finish(t, state, text, skipped, reason)
  t.state, t.at, t.reason = state, now, NO_REASON
  if state == SUCCEEDED then
    if not has(t.flags, F_MUTE) then
      if text == 'null' then
        t.flags = bor(t.flags, F_NULL)
      else
        call('HSET', P .. 'result', t.row, text)
        t.flags = bor(t.flags, F_RESULT)
      end
    end
    if skipped ~= '' then tell(t, 'skipped', skipped) end
  elseif state == IS_DEAD then
    t.reason = reason
    tell(t, 'failure', text)
  end
  if has(t.flags, F_GUARD) then give_back_key(t) end
  wait_no_more(t)
  ended[#ended + 1] = t.id
  enter(t)
end

-- Forgets what is written about a task besides its history.
local function forget_story(t)
  if has(t.flags, F_STORY) then
    for _, part in ipairs({ 'failure', 'progress', 'skipped' }) do call('HDEL', P .. part, t.row) end
  end
  if has(t.flags, F_RESULT) then call('HDEL', P .. 'result', t.row) end
  t.flags = without(t.flags, F_RESULT + F_NULL)
  t.reason = NO_REASON
end

-- Removes ended tasks; the places on their shelf are the caller's.
local function remove(rows)
  if #rows == 0 then return end
  fetch(rows)
  local gone, names, large, results, told, memos, stopped = {}, {}, {}, {}, {}, {}, {}
  for i = 1, #rows do
    local row = rows[i]
    local packed = raw[row]
    if packed then
      local state, _, flags, _, _, _, _, _, _, _, _, queue, _, _, id = struct.unpack(FORM, packed)
      gone[#gone + 1] = row
      names[#names + 1] = id
      if has(flags, F_LARGE) then large[#large + 1] = row end
      if has(flags, F_RESULT) then results[#results + 1] = row end
      if has(flags, F_STORY) then told[#told + 1] = row end
      if has(flags, F_AWAITS) then call('HDEL', P .. 'waits', row) end
      if has(flags, F_MEMO) then memos[#memos + 1] = P .. 'memo:' .. row end
      if has(flags, F_EXTRA) then
        local more = extra({ row = row })
        if more.key then call('SREM', P .. 'key:' .. more.key, row) end
        if more.workflow then call('SREM', P .. 'flow:' .. more.workflow, row) end
        call('HDEL', P .. 'extra', row)
      end
      if state == IS_DEAD then count(queue, IS_DEAD, -1) end
      if is_stopped(state) then stopped[#stopped + 1] = row end
      local block = string.sub(row, 1, 11)
      blocks[block] = (blocks[block] or 0) - 1
      raw[row] = false
      ids[id] = false
    end
  end
  if #gone == 0 then return end
  many('HDEL', TASK, gone)
  many('HDEL', BODY, large)
  many('HDEL', ID, names)
  if #stopped > 0 then many('ZREM', P .. 'stopped', stopped) end
  if #results > 0 then many('HDEL', P .. 'result', results) end
  for i = 1, #memos do call('DEL', memos[i]) end
  if #told > 0 then
    for _, part in ipairs({ 'failure', 'history', 'progress', 'skipped' }) do many('HDEL', P .. part, told) end
  end
end

-- Removes finished tasks that are too many or too old, the first that ended first; answers how many.
local function prune_finished(most)
  local over = math.min(call('ZCARD', ENDED) - FINISHED_MAX, most)
  local rows = {}
  if over > 0 then
    rows = call('ZRANGE', ENDED, 0, over - 1)
  else
    rows = call('ZRANGEBYSCORE', ENDED, '-inf', now - KEEP_FINISHED, 'LIMIT', 0, most)
  end
  if #rows > 0 then
    remove(rows)
    call('ZREMRANGEBYRANK', ENDED, 0, #rows - 1)
  end
  return #rows
end

-- Counts anew what runs: for a limit that is new nobody has counted, and an older version that is still at work counts nothing.
-- What that has pushed gets its mark on the way.
local function count_all_running()
  call('DEL', P .. 'running')
  call('HSET', P .. 'rules', 'counted', now_text)
  summary, rules = nil, {}
  if not counts_running() then return end
  local rows = call('ZRANGE', LEASE, 0, -1)
  fetch(rows)
  fetch_extras(rows)
  for i = 1, #rows do
    local t = task(rows[i])
    if t then
      local key = extras[t.row] and extras[t.row].key
      if key and not has(t.flags, F_KEYED) then
        t.flags = bor(t.flags, F_KEYED)
        save(t)
      end
      runs(t.queue, t.name, key, 1)
    end
  end
  flush()
end

-- Gives notes of deliveries their places in the order of all notes and in that of their ends, if they are still there. Each of
-- `new_notes` is the names that one adoption has written, a line each.
local function place_new_notes()
  local names = {}
  while #names < NEW_NOTES_MAX do
    local batches = call('LRANGE', P .. 'new_notes', 0, 99)
    if #batches == 0 then break end
    call('LTRIM', P .. 'new_notes', #batches, -1)
    for i = 1, #batches do
      for name in string.gmatch(batches[i], '[^\n]+') do names[#names + 1] = name end
    end
  end
  local texts, places, times = ask_many('HMGET', P .. 'note', names), {}, {}
  for i = 1, #names do
    local ends = texts[i] and string.match(texts[i], '^%S+ (%S+) ')
    if ends then
      places[#places + 1], places[#places + 2] = '0', names[i]
      times[#times + 1], times[#times + 2] = ends, names[i]
    end
  end
  many('ZADD', P .. 'notes', places)
  many('ZADD', P .. 'note_ends', times)
end

-- Makes due tasks of a queue ready; answers how many.
local function promote(queue, most)
  local key = P .. 'due:' .. queue
  local rows = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, most)
  if #rows == 0 then return 0 end
  fetch(rows)
  fetch_extras(rows)
  for i = 1, #rows do
    local t = task(rows[i])
    if t then
      leave(t)
      -- Its place among the ready ones was set by its due time when it was scheduled.
      t.state, t.at = READY, 0
      enter(t)
    else
      put(key, rows[i], false)
    end
  end
  return #rows
end
