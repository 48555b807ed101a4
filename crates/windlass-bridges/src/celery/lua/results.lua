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
local function set(key, text, ...)
  if ttl > 0 then return redis.call('SET', key, text, 'EX', ttl, ...) end
  return redis.call('SET', key, text, ...)
end
-- Writes over what is there, if it may.
local function overwrite(key, text, over)
  local is = status(redis.call('GET', key))
  if is == 'SUCCESS' or (over == 'ready' and (is == 'FAILURE' or is == 'REVOKED')) then return false end
  return set(key, text)
end
local written = {}
for i, key in ipairs(KEYS) do
  local text, over = ARGV[2 * i], ARGV[2 * i + 1]
  -- Nearly always there is nothing yet.
  if set(key, text, 'NX') or overwrite(key, text, over) then
    redis.call('PUBLISH', key, text)
    written[#written + 1] = i
  end
end
return written
