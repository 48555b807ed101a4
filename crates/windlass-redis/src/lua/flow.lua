-- What follows a task that ended: the next steps, groups and arrivals, in the script that ends it.
--
-- A new task is a list: id, queue, name, priority, due, extra, body. What a group keeps for later has the body in two
-- parts, between which the input goes. Everything in it is text: numbers would be written with too few digits.

local UNFINISHED_KEPT = 35 * 86400 * 1000000

local function create_group(new)
  local key = P .. 'group:' .. new.id
  if call('EXISTS', key) == 1 then return end
  call('HSET', key, 'size', new.size, 'policy', new.policy, 'succeeded', 0, 'failed', 0, 'phase', 'open', 'after',
    cjson.encode(new.after))
  call('ZADD', P .. 'groups', now + math.max(KEEP_DEAD, UNFINISHED_KEPT), new.id)
  call('ZADD', P .. 'open', now, new.id)
end

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
  t.body = body_of(new, input)
  if #t.body > SHORT_BODY then
    bodies[#bodies + 1] = row
    bodies[#bodies + 1] = t.body
    t.body, t.flags = '', bor(t.flags, F_LARGE)
  elseif has(t.flags, F_LARGE) then
    call('HDEL', BODY, row)
    t.flags = without(t.flags, F_LARGE)
  end
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
      if after.member then
        follow.arrive = { group = after.member.group, index = after.member.index, failure = first[1], cause = first[2] }
      end
    end
  elseif is_over then
    phase = 'complete'
    forget_at = now + KEEP_DEAD
    local after = cjson.decode(call('HGET', key, 'after'))
    local results = joined(policy, outcomes_of(at.group, size))
    follow = { push = after.push, input = results, groups = after.groups }
    if after.member and not (after.push and after.push[1]) then
      follow.arrive = { group = after.member.group, index = after.member.index, result = results }
    end
    call('DEL', arrived)
    call('HDEL', key, 'after')
    call('ZREM', P .. 'open', at.group)
  end
  call('HSET', key, 'succeeded', succeeded, 'failed', failed, 'phase', phase)
  call('ZADD', P .. 'groups', forget_at, at.group)
  return follow
end

-- Does what follows, to the end: a group that is complete may arrive at another one.
local function apply(follow)
  while follow do
    for _, new in ipairs(follow.groups or {}) do create_group(new) end
    for _, new in ipairs(follow.push or {}) do push_next(new, follow.input) end
    for _, new in ipairs(follow.stranded or {}) do strand(new, follow.cause) end
    follow = follow.arrive and arrive(follow.arrive)
  end
end
