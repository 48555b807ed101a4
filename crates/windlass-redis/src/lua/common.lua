-- What every script begins with: the names of the keys, the time, and a small unit of work.
--
-- KEYS[1] is `{namespace}:meta`; every other key has the same tag, so that all of them are in one slot of a cluster.
-- ARGV[1] is the time in microseconds, or empty for the time of this server. ARGV[2] to ARGV[4] say what is kept: ended
-- tasks (microseconds), at most so many of them, dead letters (microseconds). What a script takes beyond begins at ARGV[5].
--
-- A script reads what it needs, changes tasks in memory (`leave`, change, `enter`) and writes everything with `flush`, so
-- that a batch costs a handful of commands and not a handful for each task. Rows are the numbers of tasks as text of one
-- length: members with the same score are then in the order of their push.
--
-- The same text is a library of functions, where a server has those: it is then run once and not with every call. So
-- whatever belongs to one call is set by `begin`.

local call, band, bor
local P, now, KEEP_FINISHED, FINISHED_MAX, KEEP_DEAD
local TASK, BODY, ID, LEASE, ENDED, DEAD, FORGET, PARKED, EXPIRES

-- How a task is packed: state, priority, flags, reason, attempt, crashes, fence, at, rank, enqueued, started, queue, name,
-- node, id; then its body, when that is short. `at` is when a scheduled task is due and when an ended one ended.
local FORM = '<BBHBIIdddddssss'
local SCHEDULED, READY, RUNNING, IS_PARKED, SUCCEEDED, IS_DEAD, CANCELLED, EXPIRED = 0, 1, 2, 3, 4, 5, 6, 7
local NO_REASON, UPSTREAM = 255, 6
-- A cancel was asked for; the body says what follows; parts that most tasks lack are in the hash `extra`, among them: a
-- date of expiry, a time that the result is kept, a unique key. There is a result; it is `null`; something is written in
-- the hashes `failure`, `history`, `progress` or `skipped`; no result is kept; the body is in the hash `body`.
local F_CANCEL, F_FLOW, F_EXTRA, F_EXPIRES, F_RESULT, F_NULL, F_STORY, F_KEEP, F_GUARD, F_MUTE, F_LARGE =
  1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024
-- A body up to this size is written again with each change of its task: that costs less than an entry of its own.
local SHORT_BODY = 256
-- A level of priority is worth five minutes of waiting.
local AGING = 300000000
local HISTORY_MAX = 20

local function has(flags, flag) return band(flags, flag) ~= 0 end
local function without(flags, flag) return band(flags, bit.bnot(flag)) end
local function row_text(number) return string.format('%014d', number) end

-- A command with many values, in slices: Lua takes a few thousand values in one call.
local function many(command, key, values)
  local last = #values
  for first = 1, last, 4000 do
    call(command, key, unpack(values, first, math.min(first + 3999, last)))
  end
end

local function ask_many(command, key, fields)
  local last = #fields
  if last <= 4000 then
    if last == 0 then return {} end
    return call(command, key, unpack(fields))
  end
  local answers = {}
  for first = 1, last, 4000 do
    local some = call(command, key, unpack(fields, first, math.min(first + 3999, last)))
    for i = 1, #some do answers[#answers + 1] = some[i] end
  end
  return answers
end

-- The unit of work -------------------------------------------------------------------------------------------------

local raw, changed, order     -- packed tasks by row; those to be written
local bodies, ids_new         -- field and value in turn
local ids                     -- id to row, or false
local zsets                   -- key to row to score, or false for a row that is taken out
local lanes, lane_keys        -- key of a lane to queue and name, and back
local counts, blocks          -- changes
local queues                  -- queues that got a task
local fresh, early            -- tasks that became ready, the earliest due time, by queue
local ended                   -- ids that ended
local extras                  -- what `extra` says, by row
local now_text                -- a score that many tasks get is written once: that costs more than to store it
local rank_texts              -- the same by priority, of tasks that are ready now

local function begin()
  -- There is nothing to call while a library is defined.
  call, band, bor = redis.call, bit.band, bit.bor
  P = string.sub(KEYS[1], 1, -5)
  now = tonumber(ARGV[1])
  if not now then
    local time = call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  KEEP_FINISHED, FINISHED_MAX, KEEP_DEAD = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
  TASK, BODY, ID = P .. 'task', P .. 'body', P .. 'id'
  LEASE, ENDED, DEAD, FORGET = P .. 'lease', P .. 'ended', P .. 'dead', P .. 'forget'
  PARKED, EXPIRES = P .. 'parked', P .. 'expires'
  raw, changed, order, bodies, ids_new, ids, zsets, lanes, lane_keys = {}, {}, {}, {}, {}, {}, {}, {}, {}
  counts, blocks, queues, fresh, early, ended, extras = {}, {}, {}, {}, {}, {}, {}
  now_text, rank_texts = string.format('%.0f', now), {}
end

local function fetch(rows)
  local missing = {}
  for i = 1, #rows do
    if raw[rows[i]] == nil then missing[#missing + 1] = rows[i] end
  end
  local records = ask_many('HMGET', TASK, missing)
  for i = 1, #missing do raw[missing[i]] = records[i] end
end

local function record(row)
  local packed = raw[row]
  if packed == nil then
    packed = call('HGET', TASK, row)
    raw[row] = packed
  end
  return packed
end

local function task(row)
  local packed = record(row)
  if not packed then return nil end
  local t = { row = row }
  t.state, t.priority, t.flags, t.reason, t.attempt, t.crashes, t.fence, t.at, t.rank, t.enqueued, t.started, t.queue,
    t.name, t.node, t.id, t.body_at = struct.unpack(FORM, packed)
  t.body = string.sub(packed, t.body_at)
  return t
end

local function keep(row, packed)
  raw[row] = packed
  if not changed[row] then
    changed[row] = true
    order[#order + 1] = row
  end
end

local function save(t)
  keep(t.row, struct.pack(FORM, t.state, t.priority, t.flags, t.reason, t.attempt, t.crashes, t.fence, t.at, t.rank,
    t.enqueued, t.started, t.queue, t.name, t.node, t.id) .. t.body)
end

-- The body of a task, unless it is packed with it.
local function large_body(t)
  return has(t.flags, F_LARGE) and call('HGET', BODY, t.row)
end

local function put(key, row, score)
  local z = zsets[key]
  if not z then
    z = {}
    zsets[key] = z
  end
  z[row] = score
end

local function count(queue, state, by)
  local of_queue = counts[queue]
  if not of_queue then
    of_queue = {}
    counts[queue] = of_queue
  end
  of_queue[state] = (of_queue[state] or 0) + by
end

local function lane(queue, name)
  local of_queue = lane_keys[queue]
  if not of_queue then
    of_queue = {}
    lane_keys[queue] = of_queue
  end
  local key = of_queue[name]
  if not key then
    key = P .. 'ready:' .. queue .. ' ' .. name
    of_queue[name] = key
    lanes[key] = { queue, name }
  end
  return key
end

local function extra(t)
  local found = extras[t.row]
  if not found then
    local text = call('HGET', P .. 'extra', t.row)
    found = text and cjson.decode(text) or {}
    extras[t.row] = found
  end
  return found
end

local function row_of(id)
  local row = ids[id]
  if row == nil then
    row = call('HGET', ID, id)
    ids[id] = row
  end
  return row
end

local function waits(state) return state == SCHEDULED or state == READY or state == IS_PARKED end

-- Where an ended task is kept: dead letters, results with a time of their own, everything else.
local function shelf(t)
  if t.state == IS_DEAD then return DEAD, t.at end
  if t.state == SUCCEEDED and has(t.flags, F_KEEP) then return FORGET, t.at + extra(t).keep end
  return ENDED, t.at
end

local function enter(t)
  local state, row = t.state, t.row
  count(t.queue, state, 1)
  if state == READY then
    put(lane(t.queue, t.name), row, t.rank)
    fresh[t.queue] = (fresh[t.queue] or 0) + 1
  elseif state == SCHEDULED then
    put(P .. 'due:' .. t.queue, row, t.at)
    if not early[t.queue] or t.at < early[t.queue] then early[t.queue] = t.at end
  elseif state == RUNNING then
    put(LEASE, row, t.lease)
  elseif state == IS_PARKED then
    put(PARKED, row, t.parked or now)
    call('SADD', P .. 'parked:' .. t.name, row)
  else
    local key, score = shelf(t)
    put(key, row, score)
  end
  if has(t.flags, F_EXPIRES) and waits(state) then put(EXPIRES, row, tonumber(extra(t).expires)) end
  save(t)
end

local function leave(t)
  local state, row = t.state, t.row
  if state <= IS_PARKED or state == IS_DEAD then count(t.queue, state, -1) end
  if state == READY then
    put(lane(t.queue, t.name), row, false)
  elseif state == SCHEDULED then
    put(P .. 'due:' .. t.queue, row, false)
  elseif state == RUNNING then
    put(LEASE, row, false)
    if has(t.flags, F_CANCEL) then
      call('SREM', P .. 'cancel:' .. t.node, row)
      t.flags = without(t.flags, F_CANCEL)
    end
  elseif state == IS_PARKED then
    put(PARKED, row, false)
    call('SREM', P .. 'parked:' .. t.name, row)
  else
    put(shelf(t), row, false)
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
  local touched = {}
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
    if lanes[key] and #added > 0 then call('SADD', P .. 'lanes:' .. lanes[key][1], lanes[key][2]) end
    touched[#touched + 1] = { key, removed, #added }
  end
  for i = 1, #touched do
    local key, removed, added = touched[i][1], touched[i][2], touched[i][3]
    if #removed > 0 then many('ZREM', key, removed) end
    if lanes[key] and added == 0 and call('EXISTS', key) == 0 then
      call('SREM', P .. 'lanes:' .. lanes[key][1], lanes[key][2])
    end
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
  for queue, amount in pairs(fresh) do ring(queue, amount) end
  for queue, is_first in pairs(soon) do
    if is_first then ring(queue, 1) end
  end
  publish_ended()
  order, changed, bodies, ids_new, zsets, counts, blocks, queues = {}, {}, {}, {}, {}, {}, {}, {}
  fresh, early, ended = {}, {}, {}
end

-- New tasks ----------------------------------------------------------------------------------------------------------

-- Numbers for so many tasks; the first is the answer plus one. A store that was emptied begins beyond what it had: an
-- old receipt must not fit a new task.
local function new_rows(amount)
  local last = call('INCRBY', P .. 'seq', amount)
  if last == amount then
    last = math.floor(now / 100) + amount
    call('SET', P .. 'seq', string.format('%.0f', last))
  end
  return last - amount
end

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

-- Stores the parts that most tasks lack; answers them and the flags.
local function add_extra(row, flags, text)
  local more = cjson.decode(text)
  extras[row] = more
  if more.flow then flags = bor(flags, F_FLOW) end
  if more.mute then flags = bor(flags, F_MUTE) end
  if more.keep then flags = bor(flags, F_KEEP) end
  if more.expires then flags = bor(flags, F_EXPIRES) end
  if more.guard then flags = bor(flags, F_GUARD) end
  if more.keep or more.expires or more.guard or more.key or more.workflow then
    call('HSET', P .. 'extra', row, text)
    flags = bor(flags, F_EXTRA)
  end
  if more.key then call('SADD', P .. 'key:' .. more.key, row) end
  if more.workflow then call('SADD', P .. 'flow:' .. more.workflow, row) end
  return flags
end

-- Adds a task that is in `state` since it was pushed. Its unique key, if it has one, is free.
local function add(row, id, queue, name, priority, due, more, body, state, reason)
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
    keep(row, struct.pack(FORM, READY, priority, flags, NO_REASON, 0, 0, 0, 0, rank, now, 0, queue, name, '', id) .. body)
    if not rank_texts[priority] then rank_texts[priority] = string.format('%.0f', rank) end
    put(lane(queue, name), row, rank_texts[priority])
    count(queue, READY, 1)
    fresh[queue] = (fresh[queue] or 0) + 1
    return
  end
  enter({ row = row, state = state, priority = priority, flags = flags, reason = reason or NO_REASON, attempt = 0,
    crashes = 0, fence = 0, at = at, rank = rank, enqueued = now, started = 0, queue = queue, name = name, node = '',
    id = id, body = body })
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
  local gone, names, large, results, told = {}, {}, {}, {}, {}
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
      if has(flags, F_EXTRA) then
        local more = extra({ row = row })
        if more.key then call('SREM', P .. 'key:' .. more.key, row) end
        if more.workflow then call('SREM', P .. 'flow:' .. more.workflow, row) end
        call('HDEL', P .. 'extra', row)
      end
      if state == IS_DEAD then count(queue, IS_DEAD, -1) end
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
  if #results > 0 then many('HDEL', P .. 'result', results) end
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

-- Makes due tasks of a queue ready; answers how many.
local function promote(queue, most)
  local key = P .. 'due:' .. queue
  local rows = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, most)
  if #rows == 0 then return 0 end
  fetch(rows)
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
