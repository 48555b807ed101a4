-- Records what became of tasks, each by itself and with everything that follows.
--
-- For each task from ARGV[5]: row, check, number, proof, verdict, text, note, amount, follow.
--   check    `f`: the task is held with the fence `number` and has the id `proof`
--            `s`: the same of one that has succeeded with `text`, which comes next and is the last: nothing else is to be said
--            `=`: nothing of the packed task `proof` has changed; it gets `number` crashes
--   verdict  `S` succeeded with the result `text`, skipped for `note`; `D` dead of `text` with the reason `amount`, or `P` the
--            same of poison, which is an attempt; `C` cancelled; `E` expired; `A` again and `a` again without the attempt,
--            after `amount`, failed with `text`; `R` released; `K` parked; `W` waits for the signal `text`, for `amount` at most, unless
--            its memo has more than the `note` bytes that the holder has seen
--   follow   JSON or empty. For a verdict that does not end the task: what follows when it was to be cancelled
--
-- Answers for each `a` applied, `s` stale, or a packed task and its large body: it was to be cancelled, nothing was
-- changed, and the caller must say what follows.

local WIDTH, SHORT = 9, 5
local rows, places, last = {}, {}, #ARGV
local place = 5
while place <= last do
  rows[#rows + 1], places[#places + 1] = ARGV[place], place
  place = place + (ARGV[place + 1] == 's' and SHORT or WIDTH)
end
fetch(rows)
local is_counting = counts_running()
if is_counting then fetch_extras(rows) end

local results = {}
local answers = {}
-- What changes nothing about how a task ends.
local PLAIN = F_FLOW + F_LARGE + F_EXTRA + F_KEYED + F_MEMO
local ENDS = { S = SUCCEEDED, D = IS_DEAD, P = IS_DEAD, C = CANCELLED, E = EXPIRED }

local function settle(i)
  local row, check, number, proof = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local verdict, text, note, amount, follow = 'S', ARGV[i + 4], '', 0, ''
  if check == 's' then
    check = 'f'
  else
    verdict, text, note, amount, follow = ARGV[i + 4], ARGV[i + 5], ARGV[i + 6], tonumber(ARGV[i + 7]), ARGV[i + 8]
  end
  local packed = raw[row]
  if not packed then return 's' end
  if check == 'f' then
    local state, priority, flags, reason, attempt, _, fence, _, rank, enqueued, started, queue, name, node, id, body_at =
      struct.unpack(FORM, packed)
    if state ~= RUNNING or fence ~= number or id ~= proof then return 's' end
    if verdict == 'S' and note == '' and (flags == 0 or band(flags, PLAIN) == flags) then
      -- What nearly every task is: without a table for it.
      if text == 'null' then
        flags = flags + F_NULL
      else
        results[#results + 1] = row
        results[#results + 1] = text
        flags = flags + F_RESULT
      end
      keep(row, struct.pack(FORM, SUCCEEDED, priority, flags, reason, attempt, 0, fence, now, rank, enqueued, started,
        queue, name, node, id) .. string.sub(packed, body_at))
      put(LEASE, row, false)
      if is_counting then runs(queue, name, has(flags, F_KEYED) and extras[row].key or nil, -1) end
      put(ENDED, row, now_text)
      count(queue, RUNNING, -1)
      count(queue, SUCCEEDED, 1)
      ended[#ended + 1] = id
      if follow ~= '' then apply(cjson.decode(follow)) end
      return 'a'
    end
  elseif packed ~= proof then
    return 's'
  end

  local t = task(row)
  local was_running = t.state == RUNNING
  local ends = ENDS[verdict]
  local to_cancel = not ends and has(t.flags, F_CANCEL)
  if to_cancel and has(t.flags, F_FLOW) and follow == '' then return { packed, large_body(t) } end
  if check == 'f' then t.crashes = 0 else t.crashes = number end
  if text ~= '' and (verdict == 'A' or verdict == 'a' or ((verdict == 'D' or verdict == 'P') and was_running)) then
    remember(t, text)
  end
  leave(t)
  if verdict == 'a' or verdict == 'R' or verdict == 'K' or verdict == 'W' then t.attempt = t.attempt - 1 end
  if to_cancel then
    finish(t, CANCELLED, '', '')
    if follow ~= '' then apply(cjson.decode(follow)) end
  elseif ends then
    finish(t, ends, text, note, amount)
    if follow ~= '' then apply(cjson.decode(follow)) end
  elseif verdict == 'R' then
    t.state, t.at = READY, 0
    enter(t)
  elseif verdict == 'K' then
    t.state, t.at = IS_PARKED, 0
    enter(t)
  else
    if verdict == 'W' then
      if memo_size(t) > tonumber(note) then
        -- A signal has come while it ran.
        amount = 0
      elseif amount > 0 then
        call('HSET', P .. 'waits', row, text)
        t.flags = bor(t.flags, F_AWAITS)
      end
    end
    set_ready_at(t, now + amount)
    if amount > 0 then
      t.state, t.at = SCHEDULED, now + amount
    else
      t.state, t.at = READY, 0
    end
    enter(t)
  end
  return 'a'
end

for i = 1, #places do answers[i] = settle(places[i]) end
if #results > 0 then many('HSET', P .. 'result', results) end
flush()
-- Each settle ends one task at most, so removing two for each keeps the history at its size however rare ticks are.
if prune_finished(2 * #rows) > 0 then flush() end
return answers
