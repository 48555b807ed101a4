-- Adopts deliveries, then takes ready tasks as `claim` does.
--
-- ARGV is that of `claim`, then that of `adopt_deliveries`. Answers what becomes of each delivery, then what `claim` answers.
--
-- Its parts: this one, those of `claim`, `adopted.lua`.

-- The first write: without memory it fails, and nothing has been changed.
call('HSET', KEYS[1], 'asked', '1')
local adopted, stored, ready = adopt_deliveries(12 + tonumber(ARGV[10]) + tonumber(ARGV[11]))
