-- Puts held messages back to where they were taken from, to be served next. KEYS: holding. ARGV: tokens, as they were taken.
for i = #ARGV, 1, -1 do
  local entry = redis.call('HGET', KEYS[1], ARGV[i])
  if entry then
    local head = string.find(entry, ':', 1, true)
    local length = tonumber(string.sub(entry, 1, head - 1))
    redis.call('RPUSH', string.sub(entry, head + 1, head + length), string.sub(entry, head + length + 1))
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return #ARGV
