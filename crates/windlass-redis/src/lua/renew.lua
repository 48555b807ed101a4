-- Renews leases, records progress and adds to memos.
--
-- ARGV[5] is the lease; then for each renewal row, fence, id, progress, memo (empty for none). Answers for each `h` held,
-- `c` held and to be cancelled, `l` lost.

local till = string.format('%.0f', now + tonumber(ARGV[5]))
local rows = {}
for i = 6, #ARGV, 5 do rows[#rows + 1] = ARGV[i] end
fetch(rows)
local answers, leases = {}, {}
for i = 6, #ARGV, 5 do
  local row, fence, id, progress, memo = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local t = task(row)
  if t and t.state == RUNNING and t.fence == fence and t.id == id then
    leases[#leases + 1] = till
    leases[#leases + 1] = row
    if progress ~= '' then
      tell(t, 'progress', progress)
      save(t)
    end
    if memo ~= '' then
      add_to_memo(t, memo)
      save(t)
    end
    answers[#answers + 1] = has(t.flags, F_CANCEL) and 'c' or 'h'
  else
    answers[#answers + 1] = 'l'
  end
end
if #leases > 0 then many('ZADD', LEASE, leases) end
flush()
return answers
