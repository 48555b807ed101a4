-- Takes ready tasks and leases them.
--
-- ARGV from 5: node, lease, most, the waiting claim (empty when it does not wait), whether it has waited before (`1`), the
-- number of queues, that of names that are left to others, the queues, those names. The waiting claim is `handle number most picky`.
--
-- Answers how many were taken, microseconds until the next one falls due or a gate opens (-1 for none), then row, packed task,
-- large body and memo of each; then, for each task that has expired and whose body says what follows, the first three: the
-- caller ends it.
--
-- Its parts: this one, `pass.lua`, `take.lua`, `turns.lua`, `serve.lua`.

local node, lease, most = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local waiting, waited, amount = ARGV[8], ARGV[9] == '1', tonumber(ARGV[10])
local LOOK = 8
local room, alarm = most, -1

local blocked, paused_queues, closed = {}, {}, false
local paused = call('HKEYS', P .. 'paused')
for i = 1, #paused do
  local kind, name = string.match(paused[i], '^(%S) (%S+)$')
  if kind == 'q' then
    paused_queues[name] = true
  elseif kind == 'n' then
    blocked[name] = true
  else
    closed = true
  end
end
for i = 12 + amount, 11 + amount + tonumber(ARGV[11]) do blocked[ARGV[i]] = true end

-- What was taken, of it what has a large body or a memo; what the caller must end.
local taken, large, late, memos = {}, {}, {}, {}
-- What is written of it, once for the whole claim; rows with a key that are ready no more, by queue.
local tasks, leases, keyed_gone = {}, {}, {}
