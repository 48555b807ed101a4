-- What operators change.
--
-- ARGV[5] is the action. `cancel`, `retry`, `discard`, `move`, `reprioritise`, `run_now`, `signal`: ARGV[6] is the queue,
-- the priority, or the name of the signal, a line break and the line of the memo; ARGV[7] says whether `id`s or `row`s
-- follow. Answers for each -1 changed, -2 unknown, the number of its state when the action has no meaning for it, or a list
-- of row, packed task and large body: it is to be cancelled and the caller must say what follows. `pause`, `resume`:
-- ARGV[6] is `q` or `n`, ARGV[7] the name. `order`: ARGV[6] is the node, ARGV[7] the order. Answer what they changed.

local action = ARGV[5]

if action == 'pause' then
  return call('HSETNX', P .. 'paused', ARGV[6] .. ' ' .. ARGV[7], '1')
elseif action == 'resume' then
  local changed = call('HDEL', P .. 'paused', ARGV[6] .. ' ' .. ARGV[7])
  if changed == 1 then
    -- Everybody looks again: for what is ready, and for when the next task falls due, which nobody did meanwhile.
    if ARGV[6] == 'q' then
      ring(ARGV[7], math.huge)
    else
      for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do ring(queue, math.huge) end
    end
  end
  return changed
elseif action == 'order' then
  local beat = call('ZSCORE', P .. 'beats', ARGV[6])
  if not beat or tonumber(beat) < now - 86400000000 then return 0 end
  call('RPUSH', P .. 'orders:' .. ARGV[6], ARGV[7])
  call('LTRIM', P .. 'orders:' .. ARGV[6], -100, -1)
  return 1
end

local MEMO_BYTES_MAX = 1024 * 1024
local APPLIES = {
  cancel = { [SCHEDULED] = true, [READY] = true, [RUNNING] = true, [IS_PARKED] = true },
  retry = { [SUCCEEDED] = true, [IS_DEAD] = true, [CANCELLED] = true, [EXPIRED] = true },
  discard = { [SUCCEEDED] = true, [IS_DEAD] = true, [CANCELLED] = true, [EXPIRED] = true },
  move = { [SCHEDULED] = true, [READY] = true, [IS_PARKED] = true },
  reprioritise = { [SCHEDULED] = true, [READY] = true, [IS_PARKED] = true },
  run_now = { [SCHEDULED] = true },
  signal = { [SCHEDULED] = true, [READY] = true, [RUNNING] = true, [IS_PARKED] = true },
}

local function cancel(t)
  if t.state == RUNNING then
    if has(t.flags, F_CANCEL) then return t.state end
    t.flags = bor(t.flags, F_CANCEL)
    call('SADD', P .. 'cancel:' .. t.node, t.row)
    save(t)
  elseif has(t.flags, F_FLOW) then
    return { t.row, raw[t.row], large_body(t) }
  else
    leave(t)
    finish(t, CANCELLED, '', '')
  end
  return -1
end

-- Makes an ended task ready as if it were new, except for its history, its fence and when it was pushed.
local function retry(t)
  if has(t.flags, F_GUARD) then
    local more = extra(t)
    local by = holder(more.guard)
    if by and by ~= t.id then return t.state end
    -- A window counts from the push on and is not opened again.
    if not more.window then take_key(more, t.id) end
  end
  leave(t)
  forget_story(t)
  -- The date of expiry belonged to the life before.
  t.flags = without(t.flags, F_EXPIRES)
  t.attempt, t.crashes, t.state, t.at = 0, 0, READY, 0
  set_ready_at(t, now)
  enter(t)
  return -1
end

local function discard(t)
  put(shelf(t), t.row, false)
  remove({ t.row })
  return -1
end

-- A task that waits, in another queue or with another priority; it keeps its place in time.
local function elsewhere(t, queue, priority)
  local since = t.state == IS_PARKED and tonumber(call('ZSCORE', PARKED, t.row))
  leave(t)
  local ready_at = t.rank + t.priority * AGING
  t.queue, t.priority, t.parked = queue, priority, since or nil
  set_ready_at(t, ready_at)
  queues[queue] = true
  enter(t)
  return -1
end

local function run_now(t)
  leave(t)
  wait_no_more(t)
  t.state, t.at = READY, 0
  set_ready_at(t, now)
  enter(t)
  return -1
end

local function signal(t)
  local name, line = string.match(ARGV[6], '^([^\n]*)\n(.*)$')
  if memo_size(t) + #line > MEMO_BYTES_MAX then return t.state end
  add_to_memo(t, line)
  if t.state == SCHEDULED and has(t.flags, F_AWAITS) and call('HGET', P .. 'waits', t.row) == name then return run_now(t) end
  save(t)
  return -1
end

local function act(row)
  local t = row and task(row)
  if not t then return -2 end
  if not APPLIES[action][t.state] then return t.state end
  if action == 'cancel' then return cancel(t) end
  if action == 'retry' then return retry(t) end
  if action == 'discard' then return discard(t) end
  if action == 'move' then return elsewhere(t, ARGV[6], t.priority) end
  if action == 'reprioritise' then return elsewhere(t, t.queue, tonumber(ARGV[6])) end
  if action == 'signal' then return signal(t) end
  return run_now(t)
end

local wanted = {}
for i = 8, #ARGV do wanted[#wanted + 1] = ARGV[i] end
local rows = wanted
if ARGV[7] == 'id' then rows = ask_many('HMGET', ID, wanted) end
local known = {}
for i = 1, #rows do
  if rows[i] then known[#known + 1] = rows[i] end
end
fetch(known)
fetch_extras(known)
local answers = {}
for i = 1, #rows do answers[i] = act(rows[i]) end
flush()
return answers
