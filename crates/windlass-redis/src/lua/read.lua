-- Everything that is known of tasks.
--
-- ARGV[5] is `id`, `row`, `ended` (ids; only those that have ended) or `watch` (the same; when none has, they are announced
-- when they end, for the microseconds of ARGV[6]). ARGV[6] is a time or empty; then ids or rows. Answers for each task
-- false, or a list: row, packed task, large body, result, failure, history, progress, skipped, memo, the signal that it
-- waits for.

local how = ARGV[5]
local wanted = {}
for i = 7, #ARGV do wanted[#wanted + 1] = ARGV[i] end
local rows = wanted
if how ~= 'row' then rows = ask_many('HMGET', ID, wanted) end
local known = {}
for i = 1, #rows do
  if rows[i] then known[#known + 1] = rows[i] end
end
fetch(known)
local answers, any = {}, false
for i = 1, #rows do
  local row = rows[i]
  local packed = row and raw[row]
  local answer = false
  if packed then
    local state, _, flags = struct.unpack(FORM, packed)
    if how == 'id' or how == 'row' or state > IS_PARKED then
      any = true
      local function part(name, is_there) return is_there and call('HGET', P .. name, row) end
      local told = has(flags, F_STORY)
      answer = { row, packed, part('body', has(flags, F_LARGE)), part('result', has(flags, F_RESULT)), part('failure', told),
        part('history', told), part('progress', told), part('skipped', told),
        has(flags, F_MEMO) and call('GET', P .. 'memo:' .. row), part('waits', has(flags, F_AWAITS)) }
    end
  end
  answers[i] = answer
end
if how == 'watch' and not any then
  local values = {}
  for i = 1, #wanted do
    values[2 * i - 1] = now + tonumber(ARGV[6])
    values[2 * i] = wanted[i]
  end
  many('ZADD', P .. 'watch', values)
end
return answers
