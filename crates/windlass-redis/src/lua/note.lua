-- Notes: records that are changed by whoever has seen them.
--
-- ARGV[5] is what to do. `list`: ARGV[6] and ARGV[7] are where in `notes` to begin and to end, ARGV[8] the most. `read`:
-- ARGV[6] is the note. `write`: then what the caller saw (empty for none), how long it is kept, and the value. `forget`:
-- then what the caller saw. A note is named SPACE, a space, KEY; no space has one in it, and it sorts before everything
-- that a space may have.
--
-- `list`, `read`: answer name, version, end and value of each. `write`: the version, `forget`: 0; or a list of one note or
-- none, that somebody else has written.

local what, name = ARGV[5], ARGV[6]

-- The note, unless its time has passed: version, end and value.
local function parts_of(text)
  local version, ends, value = string.match(text, '^(%S+) (%S+) (.*)$')
  if tonumber(ends) <= now then return nil end
  return version, ends, value
end

local function tell_of(answer, named, text)
  if not text then return end
  local version, ends, value = parts_of(text)
  if not version then return end
  local at = #answer
  answer[at + 1], answer[at + 2], answer[at + 3], answer[at + 4] = named, version, ends, value
end

if what == 'list' then
  local from, till, most, answer = ARGV[6], ARGV[7], tonumber(ARGV[8]), {}
  repeat place_new_notes() until call('EXISTS', P .. 'new_notes') == 0
  while #answer < 4 * most do
    local names = call('ZRANGEBYLEX', P .. 'notes', from, till, 'LIMIT', 0, most - #answer / 4)
    if #names == 0 then break end
    local texts = ask_many('HMGET', P .. 'note', names)
    for i = 1, #names do tell_of(answer, names[i], texts[i]) end
    from = '(' .. names[#names]
  end
  return answer
end

local stored, answer = call('HGET', P .. 'note', name), {}
tell_of(answer, name, stored)
if what == 'read' or (answer[2] or '') ~= ARGV[7] then return answer end
if what == 'forget' then
  call('HDEL', P .. 'note', name)
  call('ZREM', P .. 'notes', name)
  call('ZREM', P .. 'note_ends', name)
  return 0
end
local version = new_numbers('note_version', 1) + 1
local ends = string.format('%.0f', now + tonumber(ARGV[8]))
call('HSET', P .. 'note', name, string.format('%.0f', version) .. ' ' .. ends .. ' ' .. ARGV[9])
call('ZADD', P .. 'notes', 0, name)
call('ZADD', P .. 'note_ends', ends, name)
return version
