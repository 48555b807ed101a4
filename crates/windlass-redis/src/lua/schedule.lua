-- Schedules: definitions as text, and the compare-and-set that fires a slot once.
--
-- ARGV[5] is what to do, ARGV[6] the schedule.
--   put      definition, next slot (empty for none), the definition that the caller saw (empty for none)
--   pause, remove; resume: next slot
--   fire     the slot, next slot, how many were left out, then the tasks as for a push
-- Answers `done`, `unchanged`, `unknown`, `raced`, or for `put` the definition that is stored instead of the one that was seen.
-- list: answers for each schedule definition, next, paused, last fired, last task, fired, missed.

local what, id = ARGV[5], ARGV[6]
local key = P .. 'schedule:' .. (id or '')

local function set_next(slot, paused)
  call('HSET', key, 'next', slot)
  if slot ~= '' and not paused then call('ZADD', P .. 'slots', slot, id) else call('ZREM', P .. 'slots', id) end
end

if what == 'list' then
  local answer = {}
  for _, each in ipairs(call('SMEMBERS', P .. 'schedules')) do
    answer[#answer + 1] = call('HMGET', P .. 'schedule:' .. each, 'definition', 'next', 'paused', 'last_fired', 'last_task',
      'fired', 'missed')
  end
  return answer
end

local stored = call('HMGET', key, 'definition', 'next', 'paused')
local definition, next_slot, paused = stored[1], stored[2], stored[3] == '1'

if what == 'put' then
  if definition == ARGV[7] then return 'unchanged' end
  if definition and definition ~= ARGV[9] then return { definition } end
  call('HSET', key, 'definition', ARGV[7])
  call('SADD', P .. 'schedules', id)
  set_next(ARGV[8], paused)
  return 'done'
end
if not definition then return 'unknown' end
if what == 'pause' then
  if paused then return 'unchanged' end
  call('HSET', key, 'paused', '1')
  call('ZREM', P .. 'slots', id)
elseif what == 'resume' then
  if not paused then return 'unchanged' end
  call('HSET', key, 'paused', '0')
  set_next(ARGV[7], false)
elseif what == 'remove' then
  call('DEL', key)
  call('SREM', P .. 'schedules', id)
  call('ZREM', P .. 'slots', id)
else
  if paused or next_slot ~= ARGV[7] or is_closed() then return 'raced' end
  set_next(ARGV[8], false)
  local fired, last = 0, nil
  for i, answer in ipairs(push('', 10, (#ARGV - 9) / 7)) do
    if answer == false then fired, last = fired + 1, ARGV[3 + 7 * i] end
  end
  flush()
  call('HINCRBY', key, 'missed', ARGV[9])
  if fired > 0 then
    call('HINCRBY', key, 'fired', fired)
    call('HSET', key, 'last_task', last, 'last_fired', string.format('%.0f', now))
  end
end
return 'done'
