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
-- It has a key, and is in a lane of that key when it is ready; its unique key is given back when it starts; it has a memo; it
-- waits for the signal in the hash `waits`.
local F_KEYED, F_STARTED, F_MEMO, F_AWAITS = 2048, 4096, 8192, 16384
-- A body up to this size is written again with each change of its task: that costs less than an entry of its own.
local SHORT_BODY = 256
-- A level of priority is worth five minutes of waiting.
local AGING = 300000000
local HISTORY_MAX = 20
-- About so many notes are given their places with a tick.
local NEW_NOTES_MAX = 20000

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
local lanes, lane_keys        -- key of a lane to queue, name and key of its tasks, and back
local counts, blocks          -- changes
local queues                  -- queues that got a task
local fresh, early            -- tasks that became ready, the earliest due time, by queue
local ended                   -- ids that ended
local extras                  -- what `extra` says, by row
local summary, rules          -- what limits there are, and those that were looked at
local ran                     -- how many began and how many ceased to run, by queue, name and key
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
  summary, rules, ran = nil, {}, {}
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

-- The ready tasks of a queue and a name, or with a key, too, those of that key. Queues and names have no spaces, so no two
-- lanes have one name whatever a key contains.
local function lane(queue, name, key)
  local of_queue = lane_keys[queue]
  if not of_queue then
    of_queue = {}
    lane_keys[queue] = of_queue
  end
  local place = key and name .. ' ' .. key or name
  local found = of_queue[place]
  if not found then
    found = P .. 'ready:' .. queue .. ' ' .. place
    of_queue[place] = found
    lanes[found] = { queue, name, key }
  end
  return found
end

-- Puts a task into its lane, or takes it out of it. Those with a key are in one more set by rank: what is counted and
-- listed of a queue would else be looked for in as many lanes as there are keys.
local function put_ready(queue, name, key, row, score)
  put(lane(queue, name, key), row, score)
  if key then put(P .. 'keyed:' .. queue, row, score) end
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

-- Reads the parts that most tasks lack for many tasks at once.
local function fetch_extras(rows)
  local missing = {}
  for i = 1, #rows do
    local packed = raw[rows[i]]
    if packed and not extras[rows[i]] then
      local _, _, flags = struct.unpack('<BBH', packed)
      if has(flags, F_EXTRA) then missing[#missing + 1] = rows[i] end
    end
  end
  local texts = ask_many('HMGET', P .. 'extra', missing)
  for i = 1, #missing do extras[missing[i]] = texts[i] and cjson.decode(texts[i]) or {} end
end

local function key_of(t)
  if has(t.flags, F_KEYED) then return extra(t).key end
  return nil
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
