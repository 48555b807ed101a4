-- Pushes messages of tasks to their lists, once. KEYS: for each letter the key that remembers it (empty: none), and the list
-- of each of its messages. ARGV: seconds for which letters are remembered, then for each letter how many messages it
-- has, and these.
local ttl, key, arg, sent = ARGV[1], 1, 2, 0
while arg <= #ARGV do
  local amount = tonumber(ARGV[arg])
  local is_new = KEYS[key] == '' or redis.call('SET', KEYS[key], '1', 'NX', 'EX', ttl)
  for i = 1, amount do
    if is_new then
      redis.call('LPUSH', KEYS[key + i], ARGV[arg + i])
      sent = sent + 1
    end
  end
  key, arg = key + amount + 1, arg + amount + 1
end
return sent
