-- Limits: what is set, and what runs at the gates that count it.
--
-- `rules` says in one read what a script need not look for at all: how many limits there are that a start must pass, those
-- with a concurrency, with a length, and about keys; when the last hold ends, and the last one of a key; whether an
-- older version has pushed tasks into this store (`aged`); and when what runs was last counted anew (`counted`).
--
-- A limit is in `limits`, by its subject: interval and tolerance of the rate, concurrency, length, weight, `1` when an
-- application has set it, and the rule as it was given; `-` for what it lacks. What is counted belongs to a gate: `held`
-- until when nothing passes, `next` when the next start is due, `running` how many run.

local function look_up()
  if not summary then
    local fields = call('HGETALL', P .. 'rules')
    local found = {}
    for i = 1, #fields, 2 do found[fields[i]] = tonumber(fields[i + 1]) end
    local function any(field) return (found[field] or 0) > 0 end
    local function lasts(field) return (found[field] or 0) > now end
    summary = { starts = any('starts') or lasts('held'), concurrency = any('concurrency'), length = any('length'),
      keys = any('keys') or lasts('held_keys'), held = lasts('held'), aged = any('aged'), counted = found.counted or 0 }
  end
  return summary
end

local function read_rule(text)
  local interval, tolerance, most, length, weight, by, rule =
    string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return { interval = tonumber(interval), tolerance = tonumber(tolerance), most = tonumber(most),
    length = tonumber(length), weight = tonumber(weight), by_application = by == '1', text = rule }
end

-- Reads the limits of these subjects into `rules`.
local function learn(subjects)
  local unknown = {}
  for i = 1, #subjects do
    if rules[subjects[i]] == nil then
      rules[subjects[i]] = false
      unknown[#unknown + 1] = subjects[i]
    end
  end
  local texts = ask_many('HMGET', P .. 'limits', unknown)
  for i = 1, #unknown do
    if texts[i] then rules[unknown[i]] = read_rule(texts[i]) end
  end
end

-- Adds the gates that tasks of this queue, name and key pass to two lists: the gates, and what each is a limit of.
local function add_gates(gates, subjects, queue, name, key)
  local at = #gates
  gates[at + 1], gates[at + 2] = 'queue:' .. queue, 'task:' .. name
  subjects[at + 1], subjects[at + 2] = gates[at + 1], gates[at + 2]
  if key and look_up().keys then
    gates[at + 3], subjects[at + 3] = 'key:' .. key, 'key:' .. key
    gates[at + 4], subjects[at + 4] = 'key-of-queue:' .. queue .. ' ' .. key, 'keys-of-queue:' .. queue
    gates[at + 5], subjects[at + 5] = 'key-of-task:' .. name .. ' ' .. key, 'keys-of-task:' .. name
  end
end

-- Whether anybody must know how many tasks run.
local function counts_running() return look_up().concurrency end

-- So many more tasks run, or so many less.
local function runs(queue, name, key, by)
  local place = queue .. ' ' .. name .. ' ' .. (key or '')
  ran[place] = (ran[place] or 0) + by
end

-- Counts at their gates what began and what ceased to run. Answers in which queues others may start because of it and how
-- many; `` stands for all queues.
local function count_running()
  local gates, subjects, changes, origins = {}, {}, {}, {}
  for place, by in pairs(ran) do
    local queue, name, key = string.match(place, '^(%S+) (%S+) (.*)$')
    local first = #gates + 1
    add_gates(gates, subjects, queue, name, key ~= '' and key or nil)
    for i = first, #gates do
      changes[i] = by
      origins[i] = i == first and queue or ''
    end
  end
  ran = {}
  learn(subjects)
  local by_gate, names, opened = {}, {}, {}
  for i = 1, #gates do
    local rule, gate = rules[subjects[i]], gates[i]
    if rule and rule.most then
      if not by_gate[gate] then
        by_gate[gate] = 0
        names[#names + 1] = gate
      end
      by_gate[gate] = by_gate[gate] + changes[i]
      if changes[i] < 0 then opened[origins[i]] = (opened[origins[i]] or 0) - changes[i] end
    end
  end
  local before, set, gone = ask_many('HMGET', P .. 'running', names), {}, {}
  for i = 1, #names do
    local running = tonumber(before[i] or 0) + by_gate[names[i]]
    if running > 0 then
      set[#set + 1] = names[i]
      set[#set + 1] = running
    else
      gone[#gone + 1] = names[i]
    end
  end
  if #set > 0 then many('HSET', P .. 'running', set) end
  if #gone > 0 then many('HDEL', P .. 'running', gone) end
  return opened
end

