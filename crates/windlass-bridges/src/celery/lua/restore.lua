-- Takes deliveries out of what Celery's workers have taken and not acknowledged in time.
-- KEYS: unacked_index, unacked, unacked_mutex. ARGV: seconds after which they are given back, how many, token.
-- Answers the entries: {tag, entry, ...}. Others that sweep are kept out by the mutex, which is theirs as well.
if not redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', 300000) then return {} end
local now = redis.call('TIME')
local before = tonumber(now[1]) + tonumber(now[2]) / 1000000 - tonumber(ARGV[1])
local answer = {}
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])) do
  local entry = redis.call('HGET', KEYS[2], tag)
  if entry then
    answer[#answer + 1], answer[#answer + 2] = tag, entry
  else
    redis.call('ZREM', KEYS[1], tag)
  end
end
redis.call('DEL', KEYS[3])
return answer
