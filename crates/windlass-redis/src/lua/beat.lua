-- A node says that it is alive, or somebody asks who is.
--
-- ARGV[5] is `beat`: then the node, how long the beat counts, what it says of itself, and the names that it takes when they were
-- parked. Or `nodes`: answers the time, then for each node of the last day what it said, when, and until when that counts.

if ARGV[5] == 'nodes' then
  local answer = { string.format('%.0f', now) }
  for _, node in ipairs(call('ZRANGEBYSCORE', P .. 'beats', '(' .. string.format('%.0f', now - 86400000000), '+inf')) do
    answer[#answer + 1] = call('HGET', P .. 'node', node)
    answer[#answer + 1] = call('ZSCORE', P .. 'beats', node)
    answer[#answer + 1] = call('ZSCORE', P .. 'alive', node)
  end
  return answer
end

-- The most parked tasks that one beat makes ready; the next beat goes on.
local left = 1000
call('HSET', P .. 'node', ARGV[6], ARGV[8])
call('ZADD', P .. 'beats', now, ARGV[6])
call('ZADD', P .. 'alive', now + tonumber(ARGV[7]), ARGV[6])
if #ARGV > 8 and call('EXISTS', PARKED) == 1 then
  for i = 9, #ARGV do
    if left > 0 then
      local rows = call('SRANDMEMBER', P .. 'parked:' .. ARGV[i], left)
      fetch(rows)
      for r = 1, #rows do
        local t = task(rows[r])
        if t then
          leave(t)
          t.state, t.at = READY, 0
          enter(t)
        end
      end
      left = left - #rows
    end
  end
  flush()
end
return 'ok'
