-- Moves messages from the right ends of lists into the holding hash of a session.
-- KEYS: holding, sessions, lists in their order. ARGV: how many, session, bytes, number of this look.
-- Answers {number of the list, message, ...}, or an error when nothing could be taken because of one. The token of a message is
-- the session, the number of the look and the place in the answer, from 1.
local left, session, bytes = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
-- First, because a full server refuses it, and what is popped must have a place.
redis.call('ZADD', KEYS[2], redis.call('TIME')[1], session)
local from, messages, failed = {}, {}, nil
for list = 3, #KEYS do
  while left > 0 and bytes > 0 do
    local some = math.min(left, 16)
    local got = redis.pcall('RPOP', KEYS[list], some)
    if not got then break end
    if got.err then
      failed = failed or got
      break
    end
    for _, message in ipairs(got) do
      from[#from + 1], messages[#messages + 1] = list, message
      bytes = bytes - #message
    end
    left = left - #got
    if #got < some then break end
  end
end
if #messages == 0 then return failed or {} end
local answer, held, before = {}, {}, session .. ':' .. ARGV[4] .. ':'
for i, message in ipairs(messages) do
  local name, at = KEYS[from[i]], #held
  held[at + 1], held[at + 2] = before .. i, #name .. ':' .. name .. message
  answer[2 * i - 1], answer[2 * i] = from[i] - 3, message
  -- Many at once cost less, and the stack of Lua is short.
  if #held == 256 or i == #messages then
    redis.call('HSET', KEYS[1], unpack(held))
    held = {}
  end
end
return answer
