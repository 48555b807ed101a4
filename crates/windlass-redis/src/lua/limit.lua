-- Changes limits, or tells of them.
--
-- ARGV[5] is what to do. `set`: ARGV[6] is the subject, ARGV[7] the limit as `limits` keeps it, ARGV[8] the most limits.
-- `remove`: ARGV[6] is the subject. `withdraw`: the same, unless an operator has set it. `hold`: ARGV[6] is the gate, ARGV[7] the time, ARGV[8] the most gates. `reset`: ARGV[6]
-- is the gate. Answer 1 when something has changed, 0 when not, -1 when there are too many. `view`: answers limits as
-- subject and text in turn; holds and counted starts as gate and time in turn; gates and how many run in turn.

local what, about = ARGV[5], ARGV[6]

-- A limit comes or goes: what scripts look up first is changed with it.
local function tally(rule, by)
  if not rule then return end
  local function add_to(field, counts) if counts then call('HINCRBY', P .. 'rules', field, by) end end
  add_to('starts', rule.interval or rule.most)
  add_to('concurrency', rule.most)
  add_to('length', rule.length)
  add_to('keys', string.find(about, '^key'))
end

local function put_rule(new)
  learn({ about })
  local before = rules[about] or nil
  if new then
    local rule = read_rule(new)
    if before and (before.text == rule.text or (rule.by_application and not before.by_application)) then return 0 end
    if not before and call('HLEN', P .. 'limits') >= tonumber(ARGV[8]) then return -1 end
    call('HSET', P .. 'limits', about, new)
    tally(before, -1)
    tally(rule, 1)
    if not (before and before.most) == not rule.most then return 1 end
  else
    if not before then return 0 end
    call('HDEL', P .. 'limits', about)
    tally(before, -1)
    if not before.most then return 1 end
  end
  count_all_running()
  return 1
end

local function hold()
  local till, before = now + tonumber(ARGV[7]), call('ZSCORE', P .. 'held', about)
  if before and tonumber(before) >= till then return 0 end
  if not before and call('ZCARD', P .. 'held') >= tonumber(ARGV[8]) then return -1 end
  local text = string.format('%.0f', till)
  call('ZADD', P .. 'held', text, about)
  for field, counts in pairs({ held = true, held_keys = string.find(about, '^key') or false }) do
    if counts and tonumber(call('HGET', P .. 'rules', field) or 0) < till then call('HSET', P .. 'rules', field, text) end
  end
  return 1
end

if what == 'view' then
  local from = '(' .. string.format('%.0f', now)
  return { call('HGETALL', P .. 'limits'), call('ZRANGEBYSCORE', P .. 'held', from, '+inf', 'WITHSCORES'),
    call('ZRANGEBYSCORE', P .. 'next', from, '+inf', 'WITHSCORES'), call('HGETALL', P .. 'running') }
end

local changed = 0
if what == 'set' then
  changed = put_rule(ARGV[7])
elseif what == 'remove' then
  changed = put_rule(nil)
elseif what == 'withdraw' then
  learn({ about })
  if rules[about] and rules[about].by_application then changed = put_rule(nil) end
elseif what == 'hold' then
  changed = hold()
else
  changed = math.min(call('ZREM', P .. 'held', about) + call('ZREM', P .. 'next', about), 1)
end
if changed == 1 then ring_everybody(math.huge) end
return changed
