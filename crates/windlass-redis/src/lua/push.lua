-- Stores tasks and groups, all or none.
--
-- ARGV[5] is the groups as JSON or empty, ARGV[6] the number of tasks; then for each of them id, queue, name, priority, due,
-- extra, body. Answers for each task false, or the id of the task that is in its way.

local amount = tonumber(ARGV[6])
local wanted = {}
for i = 1, amount do wanted[i] = ARGV[7 * i] end
local known = ask_many('HMGET', ID, wanted)
for i = 1, amount do ids[wanted[i]] = known[i] end

-- The first write: without memory it fails, and nothing has been changed.
local first = new_rows(amount)
if ARGV[5] ~= '' then
  for _, new in ipairs(cjson.decode(ARGV[5])) do create_group(new) end
end
local answers = {}
for i = 1, amount do
  local at = 7 * i
  local in_the_way = conflict(ARGV[at], ARGV[at + 5])
  answers[i] = in_the_way or false
  if not in_the_way then
    add(row_text(first + i), ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5],
      ARGV[at + 6], READY)
  end
end
flush()
return answers
