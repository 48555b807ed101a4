-- Stores result documents and publishes them to those who wait for them. KEYS: one for each document, its channel as well.
-- ARGV: seconds until they expire (0: never), then for each document its text and what it must not be written over:
-- `success`, or `ready` for any end. Answers the numbers of those that are written, from 1.
local ttl = tonumber(ARGV[1])
local function status(text)
  local start = string.match(text, '^{"status": "(%u+)"')
  if start then return start end
  local ok, document = pcall(cjson.decode, text)
  return ok and type(document) == 'table' and document.status or ''
end
local written = {}
for i, key in ipairs(KEYS) do
  local text, over = ARGV[2 * i], ARGV[2 * i + 1]
  local before = redis.call('GET', key)
  local is = before and status(before) or ''
  local kept = is == 'SUCCESS' or (over == 'ready' and (is == 'FAILURE' or is == 'REVOKED'))
  if not kept then
    if ttl > 0 then redis.call('SETEX', key, ttl, text) else redis.call('SET', key, text) end
    redis.call('PUBLISH', key, text)
    written[#written + 1] = i
  end
end
return written
