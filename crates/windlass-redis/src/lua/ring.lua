-- A claim stops waiting. When it was woken for a task and does not take it, the next one is.
--
-- ARGV[5] is the waiting claim (empty when nobody knows it any more), ARGV[6] whether it was woken (`1`), then its queues.

for i = 7, #ARGV do
  local queue = ARGV[i]
  if ARGV[5] ~= '' then call('ZREM', P .. 'wait:' .. queue, ARGV[5]) end
  if ARGV[6] == '1' then ring_ready(queue, math.huge) end
end
return 'ok'
