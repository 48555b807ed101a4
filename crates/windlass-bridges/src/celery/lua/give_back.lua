-- Gives one delivery back to its list, to be served next, unless it was acknowledged meanwhile.
-- KEYS: unacked_index, unacked, list. ARGV: tag, message.
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[2])
return 1
