-- Drops the elements of lists. KEYS: the lists. Answers how many elements there were.
local dropped = 0
for _, key in ipairs(KEYS) do
  dropped = dropped + redis.call('LLEN', key)
  redis.call('DEL', key)
end
return dropped
