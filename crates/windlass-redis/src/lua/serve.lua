-- The claim itself: queue by queue, then what it leaves behind, and its `answer`. Part of `claim`.

for i = 12, 11 + amount do
  local queue = ARGV[i]
  if not closed and not paused_queues[queue] and room > 0 then
    if promote(queue, 1000) > 0 then
      -- What is promoted here is for this claim; others that wait have an alarm of their own.
      fresh[queue] = nil
      flush()
    end
    local is_keyed = call('EXISTS', P .. 'names:' .. queue) == 1
    if is_keyed or look_up().starts then take_in_turns(queue, is_keyed) else take_from(queue) end
  end
end
count_passed()
write_taken()
flush()

if waiting ~= '' then
  for i = 12, 11 + amount do
    local queue = ARGV[i]
    local key = P .. 'wait:' .. queue
    if #taken == 0 then
      if #late == 0 then
        call('ZADD', key, now, waiting)
        -- Every claim that waits looks again each second; what is older was left behind by a process that is gone.
        call('PEXPIRE', key, 120000)
      end
    elseif waited then
      call('ZREM', key, waiting)
      -- It may have been woken for a task that it has not taken.
      ring_ready(queue, math.huge)
    end
    if #taken == 0 and not closed and not paused_queues[queue] then
      local first = call('ZRANGE', P .. 'due:' .. queue, 0, 0, 'WITHSCORES')
      if first[2] then
        local after = math.max(tonumber(first[2]) - now, 0)
        if alarm < 0 or after < alarm then alarm = after end
      end
    end
  end
end

if opens_at and (alarm < 0 or opens_at - now < alarm) then alarm = math.max(opens_at - now, 0) end

local answer = { #taken, alarm }
local found, bodies_of = ask_many('HMGET', BODY, large), {}
for i = 1, #large do bodies_of[large[i]] = found[i] end
for i = 1, #taken do
  local at, row = 4 * i - 1, taken[i]
  answer[at], answer[at + 1], answer[at + 2] = row, raw[row], bodies_of[row] or false
  answer[at + 3] = memos[row] and call('GET', P .. 'memo:' .. row) or false
end
for i = 1, #late do
  local t = task(late[i])
  answer[#answer + 1] = t.row
  answer[#answer + 1] = raw[t.row]
  answer[#answer + 1] = large_body(t)
end
