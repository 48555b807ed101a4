-- Opens the store: writes the version and the epoch of a new one, and the version of one that an older program has written.
-- ARGV[5] is the version that the caller writes, ARGV[6] an epoch. Answers the version and the epoch.
--
-- Version 2 has lanes of their own for tasks with a key. Those of version 1 stay where they are and are taken from there;
-- the mark `aged` says that there may be some. They go where they belong when they become ready again, or when a claim
-- finds them that must know their keys.
--
-- What was cancelled or expired has a set of its own; of a store without one it is made here, once. An older program that is
-- still at work adds nothing to it, and leaves rows there that are no more: those are taken out when they are too old.

call('HSETNX', KEYS[1], 'version', ARGV[5])
call('HSETNX', KEYS[1], 'epoch', ARGV[6])
if tonumber(call('HGET', KEYS[1], 'version')) == 1 and tonumber(ARGV[5]) > 1 then
  call('HSET', P .. 'rules', 'aged', 1)
  call('HSET', KEYS[1], 'version', ARGV[5])
end
if call('HSETNX', KEYS[1], 'stopped', 1) == 1 then
  local rows = call('ZRANGE', ENDED, 0, -1)
  fetch(rows)
  for i = 1, #rows do
    local t = task(rows[i])
    if t and is_stopped(t.state) then put(P .. 'stopped', t.row, t.at) end
  end
  flush()
end
return call('HMGET', KEYS[1], 'version', 'epoch')
