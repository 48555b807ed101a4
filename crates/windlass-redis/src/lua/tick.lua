-- Housekeeping, bounded in each call.
--
-- ARGV from 5: node, whether leases are in doubt (`1`), the time that this server should show (empty when nobody knows), how
-- long a task may be parked, the most of each kind, an epoch for a store without one, then the failures of tasks that were lost
-- once, twice and so on: as often as makes them poison.
--
-- Answers: the time, the epoch, rescued, ended, pruned, the next slot (-1 for none), orders, ids to be cancelled, and what the
-- caller must end: verdict, row, packed task, large body and crashes in turn.

local node, doubt, expected = ARGV[5], ARGV[6] == '1', tonumber(ARGV[7])
local parked_for, most = tonumber(ARGV[8]), tonumber(ARGV[9])
local CRASHES_MAX = #ARGV - 10
-- A difference of less than this between two clocks is no move.
local MOVED = 2000000
-- What runs is counted anew after this time, unless it is more than this.
local COUNTED_FOR, COUNTED_MAX = 60000000, 20000

call('HSETNX', KEYS[1], 'epoch', ARGV[10])
if expected and math.abs(now - expected) >= MOVED then doubt = true end

local rescued, finished, by_caller = 0, 0, {}

local function leave_to_caller(verdict, t, crashes)
  by_caller[#by_caller + 1] = verdict
  by_caller[#by_caller + 1] = t.row
  by_caller[#by_caller + 1] = raw[t.row]
  by_caller[#by_caller + 1] = large_body(t)
  by_caller[#by_caller + 1] = crashes
end

local left = most
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  if left > 0 then left = left - promote(queue, left) end
end
flush()

-- Rows at or before a time; those whose task is gone are taken out.
local function until_(key, time)
  local rows = call('ZRANGEBYSCORE', key, '-inf', time, 'LIMIT', 0, math.min(most, 250))
  fetch(rows)
  local tasks = {}
  for i = 1, #rows do
    local t = task(rows[i])
    if t then tasks[#tasks + 1] = t else call('ZREM', key, rows[i]) end
  end
  return tasks
end

if not doubt then
  for _, t in ipairs(until_(LEASE, now)) do
    local crashes = t.crashes + 1
    local failure = ARGV[10 + math.min(crashes, CRASHES_MAX)]
    if has(t.flags, F_CANCEL) then
      if has(t.flags, F_FLOW) then
        leave_to_caller('C', t, crashes)
      else
        t.crashes = crashes
        leave(t)
        finish(t, CANCELLED, '', '')
        finished = finished + 1
      end
    elseif crashes >= CRASHES_MAX then
      leave_to_caller('P', t, crashes)
    else
      t.crashes = crashes
      remember(t, failure)
      leave(t)
      t.state, t.at = READY, 0
      enter(t)
      rescued = rescued + 1
    end
  end
  flush()
end

for _, t in ipairs(until_(EXPIRES, now)) do
  if has(t.flags, F_FLOW) then
    leave_to_caller('E', t, t.crashes)
  else
    leave(t)
    finish(t, EXPIRED, '', '')
    finished = finished + 1
  end
end
flush()

for _, t in ipairs(until_(PARKED, now - parked_for)) do leave_to_caller('D', t, t.crashes) end

local pruned = prune_finished(most)
-- An older program that is still at work takes no row out of this set; what it left is out of every shelf by then.
call('ZREMRANGEBYSCORE', P .. 'stopped', '-inf', now - KEEP_FINISHED - 86400 * 1000000)
for _, shelf_and_time in ipairs({ { DEAD, now - KEEP_DEAD }, { FORGET, now } }) do
  local rows = call('ZRANGEBYSCORE', shelf_and_time[1], '-inf', shelf_and_time[2], 'LIMIT', 0, most)
  if #rows > 0 then
    remove(rows)
    many('ZREM', shelf_and_time[1], rows)
    pruned = pruned + #rows
  end
end
flush()

if counts_running() and look_up().counted <= now - COUNTED_FOR and call('ZCARD', LEASE) <= COUNTED_MAX then
  count_all_running()
end

for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'groups', '-inf', now, 'LIMIT', 0, most)) do
  call('DEL', P .. 'group:' .. id, P .. 'arrived:' .. id)
  call('ZREM', P .. 'groups', id)
  call('ZREM', P .. 'open', id)
end
for _, key in ipairs(call('ZRANGEBYSCORE', P .. 'windows', '-inf', now, 'LIMIT', 0, most)) do
  -- It may have been taken again since.
  if not holder(key) then call('HDEL', P .. 'taken', key) end
  call('ZREM', P .. 'windows', key)
end
for _, old in ipairs(call('ZRANGEBYSCORE', P .. 'beats', '-inf', now - 86400000000, 'LIMIT', 0, most)) do
  call('HDEL', P .. 'node', old)
  call('ZREM', P .. 'beats', old)
  call('ZREM', P .. 'alive', old)
  call('DEL', P .. 'orders:' .. old)
end
for _, key in ipairs({ 'watch', 'held', 'next' }) do call('ZREMRANGEBYSCORE', P .. key, '-inf', now) end
place_new_notes()
local old_notes = call('ZRANGEBYSCORE', P .. 'note_ends', '-inf', now, 'LIMIT', 0, most)
if #old_notes > 0 then
  many('HDEL', P .. 'note', old_notes)
  many('ZREM', P .. 'notes', old_notes)
  many('ZREM', P .. 'note_ends', old_notes)
end

local orders = call('LRANGE', P .. 'orders:' .. node, 0, -1)
if #orders > 0 then call('DEL', P .. 'orders:' .. node) end
local cancelled = {}
for _, row in ipairs(call('SMEMBERS', P .. 'cancel:' .. node)) do
  local t = task(row)
  if t then cancelled[#cancelled + 1] = t.id end
end
local slot = is_closed() and {} or call('ZRANGE', P .. 'slots', 0, 0, 'WITHSCORES')
return { string.format('%.0f', now), call('HGET', KEYS[1], 'epoch'), rescued, finished, pruned, slot[2] or '-1', orders,
  cancelled, by_caller }
