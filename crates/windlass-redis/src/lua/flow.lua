-- What follows a task that ended: the next steps, groups and arrivals, in the script that ends it.
--
-- A new task is a list: id, queue, name, priority, due, extra, body. What a group keeps for later has the body in two
-- parts, between which the input goes. Everything in it is text: numbers would be written with too few digits.

local function body_of(new, input)
  if new[8] then return new[7] .. (input or 'null') .. new[8] end
  return new[7]
end

-- Pushes the next step: one that is stranded comes back to life, one that is known otherwise is left alone.
local function push_next(new, input)
  local id, more = new[1], new[6]
  local row = row_of(id)
  if not row then
    if conflict(id, more) then return end
    row = row_text(new_rows(1) + 1)
    add(row, id, new[2], new[3], tonumber(new[4]), new[5], more, body_of(new, input), READY)
    return
  end
  local t = task(row)
  if not t or t.state ~= IS_DEAD or t.reason ~= UPSTREAM then return end
  leave(t)
  forget_story(t)
  if has(t.flags, F_STORY) then call('HDEL', P .. 'history', row) end
  t.flags = without(t.flags, F_STORY)
  set_body(t, body_of(new, input))
  queues[new[2]] = true
  t.queue, t.name, t.priority, t.state, t.at = new[2], new[3], tonumber(new[4]), READY, 0
  set_ready_at(t, now)
  enter(t)
end

-- Records a task that will never run, so that an operator sees it.
local function strand(new, cause)
  if row_of(new[1]) then return end
  local row = row_text(new_rows(1) + 1)
  call('HSET', P .. 'failure', row, cause)
  add(row, new[1], new[2], new[3], tonumber(new[4]), '', new[6], body_of(new), IS_DEAD, UPSTREAM)
  local t = task(row)
  t.flags = bor(t.flags, F_STORY)
  save(t)
  ended[#ended + 1] = new[1]
end

-- What the members of a group ended with, in the order of their places.
local function outcomes_of(id, size)
  local places = {}
  for i = 1, size do places[i] = i - 1 end
  return ask_many('HMGET', P .. 'arrived:' .. id, places)
end

local function joined(policy, outcomes)
  local parts = {}
  for i = 1, #outcomes do
    local outcome = outcomes[i]
    local good, text = string.sub(outcome, 1, 1) == '+', string.sub(outcome, 2)
    if not good then text = cjson.decode(text)[1] end
    if policy == 'collect' then
      parts[i] = (good and '{"ok":' or '{"error":') .. text .. '}'
    else
      parts[i] = good and text or 'null'
    end
  end
  return '[' .. table.concat(parts, ',') .. ']'
end

-- Counts a member that ended; answers what its group starts. Each member counts once, by its latest arrival, and a
-- success is never replaced.
local function arrive(at)
  local key, arrived = P .. 'group:' .. at.group, P .. 'arrived:' .. at.group
  local group = call('HMGET', key, 'size', 'policy', 'succeeded', 'failed', 'phase')
  local size, policy, phase = tonumber(group[1]), group[2], group[5]
  if not size or phase == 'complete' or tonumber(at.index) >= size then return nil end
  local succeeded, failed = tonumber(group[3]), tonumber(group[4])
  local before = call('HGET', arrived, at.index)
  if before then
    if string.sub(before, 1, 1) == '+' then return nil end
    failed = failed - 1
  end
  if at.result then
    succeeded = succeeded + 1
    call('HSET', arrived, at.index, '+' .. at.result)
  else
    failed = failed + 1
    call('HSET', arrived, at.index, '-' .. cjson.encode({ at.failure, at.cause }))
  end
  local is_over = succeeded + failed == size
  local follow = nil
  local forget_at = now + math.max(KEEP_DEAD, UNFINISHED_KEPT)
  if (policy == 'all' and failed > 0) or (policy == 'any' and is_over and succeeded == 0) then
    if phase == 'open' then
      phase = 'failed'
      local after = cjson.decode(call('HGET', key, 'after'))
      local outcomes, first = outcomes_of(at.group, size), nil
      for i = 1, size do
        if outcomes[i] and string.sub(outcomes[i], 1, 1) == '-' then
          first = cjson.decode(string.sub(outcomes[i], 2))
          break
        end
      end
      follow = { push = after.otherwise, input = first[1], stranded = after.push, cause = first[2] }
      -- What an older version has stored names one place at most.
      follow.arrive = {}
      for _, place in ipairs(after.fails or { after.member }) do
        follow.arrive[#follow.arrive + 1] = { group = place.group, index = place.index, failure = first[1], cause = first[2] }
      end
    end
  elseif is_over then
    phase = 'complete'
    forget_at = now + KEEP_DEAD
    local after = cjson.decode(call('HGET', key, 'after'))
    local results = joined(policy, outcomes_of(at.group, size))
    follow = { push = after.push, input = results, groups = after.groups }
    if after.member and not (after.push and after.push[1]) then
      follow.arrive = { { group = after.member.group, index = after.member.index, result = results } }
    end
    call('DEL', arrived)
    call('HDEL', key, 'after')
    call('ZREM', P .. 'open', at.group)
  end
  call('HSET', key, 'succeeded', succeeded, 'failed', failed, 'phase', phase)
  call('ZADD', P .. 'groups', forget_at, at.group)
  return follow
end

-- Does what follows, to the end: a group that is complete may arrive at others.
local function apply(follow)
  local rest, at = { follow }, 1
  while rest[at] do
    local next_one = rest[at]
    for _, new in ipairs(next_one.groups or {}) do create_group(new) end
    for _, new in ipairs(next_one.push or {}) do push_next(new, next_one.input) end
    for _, new in ipairs(next_one.stranded or {}) do strand(new, next_one.cause) end
    for _, arrival in ipairs(next_one.arrive or {}) do rest[#rest + 1] = arrive(arrival) end
    at = at + 1
  end
end
