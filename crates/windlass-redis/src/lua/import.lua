-- Keeps tasks and groups of another store as they are, all or none; those that are known are left alone.
--
-- ARGV[5] is the groups as JSON or empty: as new ones, with their phase and with places and outcomes in turn. ARGV[6] is
-- the number of tasks; then for each of them id, queue, name, priority, due (empty), extra and body as for a push, and
-- state, due or end, when it became ready, when it was pushed, when it was started (0 for never), attempt, crashes, node,
-- reason, result, failure, history, progress, skipped, memo, the signal that it waits for. What is missing is empty.
-- Answers how many tasks and groups are new.

local WIDTH = 23
local amount = tonumber(ARGV[6])
local wanted = {}
for i = 1, amount do wanted[i] = ARGV[7 + WIDTH * (i - 1)] end
local known = ask_many('HMGET', ID, wanted)
for i = 1, amount do ids[wanted[i]] = known[i] end

local function import_group(new)
  local key = P .. 'group:' .. new.id
  if call('EXISTS', key) == 1 then return 0 end
  create_group(new)
  local succeeded = 0
  for i = 2, #new.arrived, 2 do
    if string.sub(new.arrived[i], 1, 1) == '+' then succeeded = succeeded + 1 end
  end
  if #new.arrived > 0 then many('HSET', P .. 'arrived:' .. new.id, new.arrived) end
  call('HSET', key, 'succeeded', succeeded, 'failed', #new.arrived / 2 - succeeded, 'phase', new.phase)
  return 1
end

-- A unique key goes to its task where it is free. A window is counted from the push on, wherever that was.
local function take_over_key(t)
  local more = extra(t)
  local wants = waits(t.state)
  if more.window then wants = t.enqueued + more.window > now end
  if wants and not holder(more.guard) then take_key(more, t.id, t.enqueued) end
end

local function import_task(row, at)
  local id, queue, name, priority = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  -- It is added as what takes no key and wakes nobody, and put into its place then.
  add(row, id, queue, name, priority, '', ARGV[at + 5], ARGV[at + 6], IS_DEAD)
  local t = task(row)
  leave(t)
  local more = at + 7
  t.state, t.at = tonumber(ARGV[more]), tonumber(ARGV[more + 1])
  set_ready_at(t, tonumber(ARGV[more + 2]))
  t.enqueued, t.started = tonumber(ARGV[more + 3]), tonumber(ARGV[more + 4])
  t.attempt, t.crashes, t.node = tonumber(ARGV[more + 5]), tonumber(ARGV[more + 6]), ARGV[more + 7]
  if ARGV[more + 8] ~= '' then t.reason = tonumber(ARGV[more + 8]) end
  local result = ARGV[more + 9]
  if result == 'null' then
    t.flags = bor(t.flags, F_NULL)
  elseif result ~= '' then
    call('HSET', P .. 'result', row, result)
    t.flags = bor(t.flags, F_RESULT)
  end
  for i, part in ipairs({ 'failure', 'history', 'progress', 'skipped' }) do
    local text = ARGV[more + 9 + i]
    if text ~= '' then tell(t, part, text) end
  end
  if ARGV[more + 14] ~= '' then add_to_memo(t, ARGV[more + 14]) end
  if ARGV[more + 15] ~= '' then
    call('HSET', P .. 'waits', row, ARGV[more + 15])
    t.flags = bor(t.flags, F_AWAITS)
  end
  if has(t.flags, F_GUARD) then take_over_key(t) end
  if not waits(t.state) then ended[#ended + 1] = id end
  enter(t)
end

-- The first write: without memory it fails, and nothing has been changed.
local first = new_rows(amount)
local new = 0
if ARGV[5] ~= '' then
  for _, group in ipairs(cjson.decode(ARGV[5])) do new = new + import_group(group) end
end
for i = 1, amount do
  if not row_of(wanted[i]) then
    import_task(row_text(first + i), 7 + WIDTH * (i - 1))
    new = new + 1
  end
end
flush()
return new
