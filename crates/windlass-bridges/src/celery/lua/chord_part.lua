-- Counts a part of a chord. KEYS: parts, counted, claim, size, correction, saved group.
-- ARGV: part, score, name of the part, seconds until all expires, token, seconds of a claim.
-- Answers 1 when all parts are there and the caller goes on with the body; 0 otherwise.
if redis.call('GET', KEYS[3]) == 'done' then return 0 end
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 then
  -- An application may keep its parts in a list, in the order in which they end.
  if redis.call('TYPE', KEYS[1]).ok == 'list' then
    redis.call('RPUSH', KEYS[1], ARGV[1])
  else
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
  end
  redis.call('SADD', KEYS[2], ARGV[3])
end
if tonumber(ARGV[4]) > 0 then
  for i = 1, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[4]) end
end
local is_list = redis.call('TYPE', KEYS[1]).ok == 'list'
local count = is_list and redis.call('LLEN', KEYS[1]) or redis.call('ZCARD', KEYS[1])
local size = redis.call('GET', KEYS[4])
if not size then return 0 end
if count ~= tonumber(size) + tonumber(redis.call('GET', KEYS[5]) or '0') then return 0 end
-- The same caller goes on with what it has claimed.
local claimed = redis.call('GET', KEYS[3])
if claimed and claimed ~= ARGV[5] then return 0 end
redis.call('SET', KEYS[3], ARGV[5], 'EX', ARGV[6])
return 1
