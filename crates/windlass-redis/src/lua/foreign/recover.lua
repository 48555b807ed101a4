-- Says that a session lives, and takes over what sessions hold that have been silent.
-- KEYS: holding of this session, sessions. ARGV: session, seconds of silence, how many, what holdings begin with.
-- Answers {token, name of the list, message, ...}.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local left, answer = tonumber(ARGV[3]), {}
for _, session in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, 10)) do
  local holding = ARGV[4] .. session
  local entries = session ~= ARGV[1] and redis.call('HGETALL', holding) or {}
  for i = 1, #entries, 2 do
    local token, entry = entries[i], entries[i + 1]
    if left > 0 then
      local head = string.find(entry, ':', 1, true)
      local length = tonumber(string.sub(entry, 1, head - 1))
      redis.call('HSET', KEYS[1], token, entry)
      redis.call('HDEL', holding, token)
      answer[#answer + 1] = token
      answer[#answer + 1] = string.sub(entry, head + 1, head + length)
      answer[#answer + 1] = string.sub(entry, head + length + 1)
      left = left - 1
    end
  end
  if left > 0 and session ~= ARGV[1] then
    redis.call('DEL', holding)
    redis.call('ZREM', KEYS[2], session)
  end
end
return answer
