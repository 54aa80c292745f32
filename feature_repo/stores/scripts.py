"""The Lua that makes writes atomic. Each script works on one key, or on keys of one slot. Equality and whole numbers
below 2**53 only: Lua's numbers lose 64-bit values, so offsets and versions are compared as 32-bit halves.
"""

FENCED_WRITE = """
-- KEYS: entities; ARGV: of each a field, the 16 header bytes it was folded from ('' for none), and its new value.
-- Answers 1 a field that was written, 0 a field that holds something else by now.
local answers = {}
for k = 1, #KEYS do
  local at = 3 * k - 2
  local stored = redis.call('HGET', KEYS[k], ARGV[at])
  if (stored and string.sub(stored, 1, 16) or '') == ARGV[at + 1] then
    redis.call('HSET', KEYS[k], ARGV[at], ARGV[at + 2])
    answers[k] = 1
  else
    answers[k] = 0
  end
end
return answers
"""

SWAP_FIELD = """
-- KEYS[1] a hash; ARGV: field, expected value ('' for none), new value. Answers {1} or {0, what is stored}.
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if stored ~= ARGV[2] then return {0, stored} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {1}
"""

REPLACE_HASH = """
-- KEYS[1] a hash; ARGV: a field, its expected value ('' for no hash), then fields and values: all that it shall hold.
-- Answers 1 if the field was as expected, else 0, changing nothing.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
"""

NEWEST_WINS = """
-- KEYS: entities; ARGV: the version field, the count of further fields and they themselves, then for each entity its
-- version (16 bytes, big-endian) and those fields' values. A row replaces what is stored unless its version is lower.
local vs, count = ARGV[1], tonumber(ARGV[2])
local row = {}
for f = 1, count do row[2 * f - 1] = ARGV[2 + f] end
local at = 3 + count
local written = 0
for k = 1, #KEYS do
  local version = ARGV[at]
  local stored = redis.call('HGET', KEYS[k], vs)
  local older = false
  if stored then
    local a1, a2, a3, a4 = struct.unpack('>I4I4I4I4', version)
    local b1, b2, b3, b4 = struct.unpack('>I4I4I4I4', stored)
    if a1 ~= b1 then older = a1 < b1
    elseif a2 ~= b2 then older = a2 < b2
    elseif a3 ~= b3 then older = a3 < b3
    else older = a4 < b4 end
  end
  if not older then
    for f = 1, count do row[2 * f] = ARGV[at + f] end
    redis.call('HSET', KEYS[k], vs, version, unpack(row, 1, 2 * count))
    written = written + 1
  end
  at = at + 1 + count
end
return written
"""

# A member's register: time, partition, offset, epoch (unsigned, big-endian; time biased by 2**63), then state, a zero
# byte, and group. Sets `<base>:z:<state>:<group>` hold the members by time; of each partition `<base>:a` has what was
# applied and `<base>:n` the newest time.
PRESENCE_APPLY = """
-- KEYS[1] the base; ARGV: partition, epoch bytes, last offset bytes, newest time, ttl, then of each of some members:
-- member, register, time. The later (time, partition, offset) wins, in whatever order events come. Members that are
-- older than the ttl count nowhere, nor will anything older of theirs: they are forgotten, set by set.
local base = KEYS[1]
local members = base .. ':m'
local sets = {}
local function set_of(register)
  local place = string.sub(register, 29)
  local set = sets[place]
  if not set then
    local zero = string.find(place, '\\0', 1, true)
    set = base .. ':z:' .. string.sub(place, 1, zero - 1) .. ':' .. string.sub(place, zero + 1)
    sets[place] = set
  end
  return set
end
local function later(register, stored)
  local a1, a2 = struct.unpack('>I4I4', register)
  local b1, b2 = struct.unpack('>I4I4', stored)
  if a1 ~= b1 then return a1 > b1 end
  if a2 ~= b2 then return a2 > b2 end
  local a3, a4, a5 = struct.unpack('>I4I4I4', register, 9)
  local b3, b4, b5 = struct.unpack('>I4I4I4', stored, 9)
  if a3 ~= b3 then return a3 > b3 end
  if a4 ~= b4 then return a4 > b4 end
  return a5 > b5
end
local names = {}
for i = 6, #ARGV, 3 do names[#names + 1] = ARGV[i] end
local known = redis.call('HMGET', members, unpack(names))
local moved, left, entered = {}, {}, {}
for k = 1, #names do
  local register, stored = ARGV[3 * k + 4], known[k]
  if not stored or later(register, stored) then
    local set = set_of(register)
    if stored and set_of(stored) ~= set then
      local from = set_of(stored)
      local gone = left[from]
      if not gone then
        gone = {}
        left[from] = gone
      end
      gone[#gone + 1] = names[k]
    end
    moved[#moved + 1] = names[k]
    moved[#moved + 1] = register
    local into = entered[set]
    if not into then
      into = {}
      entered[set] = into
    end
    into[#into + 1] = ARGV[3 * k + 5]
    into[#into + 1] = names[k]
  end
end
for set, gone in pairs(left) do redis.call('ZREM', set, unpack(gone)) end
for set, into in pairs(entered) do redis.call('ZADD', set, unpack(into)) end
if #moved > 0 then redis.call('HSET', members, unpack(moved)) end
local newest = tonumber(redis.call('HGET', base .. ':n', ARGV[1]) or '-1e18')
if tonumber(ARGV[4]) > newest then redis.call('HSET', base .. ':n', ARGV[1], ARGV[4]) end
local applied, before = ARGV[2] .. ARGV[3], redis.call('HGET', base .. ':a', ARGV[1])
local further = not before
if before then
  local a1, a2, a3, a4 = struct.unpack('>I4I4I4I4', applied)
  local b1, b2, b3, b4 = struct.unpack('>I4I4I4I4', before)
  if a1 ~= b1 then further = a1 > b1
  elseif a2 ~= b2 then further = a2 > b2
  elseif a3 ~= b3 then further = a3 > b3
  else further = a4 > b4 end
end
if further then redis.call('HSET', base .. ':a', ARGV[1], applied) end
local oldest = string.format('(%.0f', math.max(newest, tonumber(ARGV[4])) - tonumber(ARGV[5]))
for set in pairs(entered) do
  local gone = redis.call('ZRANGEBYSCORE', set, '-inf', oldest, 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', set, unpack(gone))
    redis.call('HDEL', members, unpack(gone))
  end
end
return #ARGV
"""

PRESENCE_PURGE = """
-- KEYS[1] the base; ARGV: partition, epoch bytes, then members: those whose register is of that partition and of a
-- lower epoch are forgotten, and its newest time, for their log is no longer there.
local base = KEYS[1]
redis.call('HDEL', base .. ':n', ARGV[1])
local p = tonumber(ARGV[1])
local e1, e2 = struct.unpack('>I4I4', ARGV[2])
for i = 3, #ARGV do
  local stored = redis.call('HGET', base .. ':m', ARGV[i])
  if stored then
    local _, _, sp, _, _, s1, s2 = struct.unpack('>I4I4I4I4I4I4I4', stored)
    if sp == p and (s1 < e1 or (s1 == e1 and s2 < e2)) then
      local zero = string.find(stored, '\\0', 29, true)
      local set = base .. ':z:' .. string.sub(stored, 29, zero - 1) .. ':' .. string.sub(stored, zero + 1)
      redis.call('ZREM', set, ARGV[i])
      redis.call('HDEL', base .. ':m', ARGV[i])
    end
  end
end
return 1
"""

PRESENCE_READ = """
-- KEYS[1] the base; ARGV: instant, ttl, the number of states, states, then groups. The instant is moved up to the
-- newest time applied. Answers {newest, what was applied ([partition, epoch .. offset]...), then of each group a count
-- a state}.
local base = KEYS[1]
local newest, at = '', tonumber(ARGV[1])
for _, time in ipairs(redis.call('HVALS', base .. ':n')) do
  if newest == '' or tonumber(time) > tonumber(newest) then newest = time end
end
if newest ~= '' and tonumber(newest) > at then at = tonumber(newest) end
local answer = {newest, redis.call('HGETALL', base .. ':a')}
local from = string.format('%.0f', at - tonumber(ARGV[2]))
local last = 3 + tonumber(ARGV[3])
for g = last + 1, #ARGV do
  for i = 4, last do
    answer[#answer + 1] = redis.call('ZCOUNT', base .. ':z:' .. ARGV[i] .. ':' .. ARGV[g], from, '+inf')
  end
end
return answer
"""
