"""The Lua scripts of the index. Each runs atomically on one node: all its keys share a hash tag.

They are sent whole (EVAL), not by digest: they have some hundred bytes, and a node that takes over has no digests yet.

A client cannot know whether a command was run if its reply is lost, so it sends the command again; and a command that
its client has given up may be run long after. Therefore every change has

    an operation id   random, 8 bytes. A change that finds its own id returns the answer that it gave the first time.
    the state seen    the state that it depends on. A change that finds another state has no effect and tells its client
                      to look again, so that a late change never overwrites one that was acknowledged before.

Times are the server's (TIME): the clocks of two gateways are never compared.
"""

# Answers of several scripts: there is no such collection or shard; the state differs from the one that was seen.
GONE, CHANGED = -1, -2

# Runs a change of the catalogue at most once: its answer is kept for a minute, longer than any client retries.
_ONCE = """
local function once(key, change)
  local before = redis.call('GET', key)
  if before then return tonumber(before) end
  local answer = change()
  redis.call('SET', key, answer, 'EX', 60)
  return answer
end
"""

# KEYS: trash. ARGV: uid, hash tags (JSON), seconds. Announces a collection: if it is not created within the seconds,
# its keys are removed.
BEGIN = """
local after = tonumber(redis.call('TIME')[1]) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({tags = cjson.decode(ARGV[2]), after = after}))
return 1
"""

# KEYS: collections, aliases, trash. ARGV: name, uid, description. Returns 1; 0 if the name is taken by another; -2 if
# the new keys are being removed already: start again with another uid.
CREATE = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found == ARGV[3] then return 1 end
if found or redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
local entry = redis.call('HGET', KEYS[3], ARGV[2])
if not entry or cjson.decode(entry).after == 0 then return -2 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[2])
return 1
"""

# KEYS: trash, collections. Returns uid and entry (JSON) of each collection whose keys are to be removed now, and claims
# them (after = 0): such a collection can no longer be created, and the next caller removes what is left. The entry of a
# collection that exists was written late, and is dropped.
CLAIM = """
local now = tonumber(redis.call('TIME')[1])
local claimed, trash, named = {}, redis.call('HGETALL', KEYS[1]), nil
local function has_name(uid)
  named = named or redis.call('HVALS', KEYS[2])
  for _, description in ipairs(named) do
    if string.find(description, uid, 1, true) then return true end
  end
  return false
end
for i = 1, #trash, 2 do
  local entry = cjson.decode(trash[i + 1])
  if entry.after <= now and has_name(trash[i]) then
    redis.call('HDEL', KEYS[1], trash[i])
  elseif entry.after <= now then
    if entry.after ~= 0 then
      entry.after = 0
      redis.call('HSET', KEYS[1], trash[i], cjson.encode(entry))
    end
    claimed[#claimed + 1] = trash[i]
    claimed[#claimed + 1] = trash[i + 1]
  end
end
return claimed
"""

# KEYS: collections, aliases. ARGV: name or alias. Returns {name, description} or nothing.
RESOLVE = """
local name = ARGV[1]
local found = redis.call('HGET', KEYS[1], name)
if not found then
  name = redis.call('HGET', KEYS[2], name)
  found = name and redis.call('HGET', KEYS[1], name)
end
return found and {name, found} or {}
"""

# KEYS: collections, aliases, trash, version of the aliases, answer. ARGV: name, description, uid, hash tags (JSON),
# operation. Returns 1 if exactly that collection was removed, else 0.
REMOVE = (
    _ONCE
    + """
return once(KEYS[5], function()
  if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
  redis.call('HDEL', KEYS[1], ARGV[1])
  local aliases = redis.call('HGETALL', KEYS[2])
  for i = 1, #aliases, 2 do
    if aliases[i + 1] == ARGV[1] then
      redis.call('HDEL', KEYS[2], aliases[i])
      redis.call('SET', KEYS[4], ARGV[5])
    end
  end
  redis.call('HSET', KEYS[3], ARGV[3], cjson.encode({tags = cjson.decode(ARGV[4]), after = 0}))
  return 1
end)
"""
)

# KEYS: collections, aliases. Returns both hashes as of one moment.
LIST = """
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
"""

# KEYS: collections, aliases, version of the aliases, answer. ARGV: alias, collection, operation, version seen ("" for
# none). Returns 1; 0 if there is no such collection; -1 if the alias is the name of a collection; -2 changed.
SET_ALIAS = (
    _ONCE
    + """
return once(KEYS[4], function()
  if (redis.call('GET', KEYS[3]) or '') ~= ARGV[4] then return -2 end
  if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return -1 end
  if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return 0 end
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  redis.call('SET', KEYS[3], ARGV[3])
  return 1
end)
"""
)

# KEYS: aliases, version of the aliases, answer. ARGV: alias, operation, version seen. Returns 1; 0 if there is none;
# -2 changed.
DELETE_ALIAS = (
    _ONCE
    + """
return once(KEYS[3], function()
  if (redis.call('GET', KEYS[2]) or '') ~= ARGV[3] then return -2 end
  local gone = redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], ARGV[2])
  return gone
end)
"""
)

# KEYS: probe. ARGV: a filter. Searches a set of one vector, which it creates if it is missing: it may be evicted at any
# time. Returns the error of Redis for the filter, "" for none.
PROBE = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('VADD', KEYS[1], 'VALUES', 1, 1, 'probe') end
local reply = redis.pcall('VSIM', KEYS[1], 'VALUES', 1, 1, 'COUNT', 1, 'FILTER', ARGV[1])
return reply.err or ''
"""

# On the keys of a shard, in this order in KEYS: c, v, t, h, d. `held` returns how many documents each of v, t and h
# has, -1 for a key of another type; `documents` the number in the marker, nil without a marker.
_SHARD = """
local kinds = {'hash', 'vectorset', 'hash', 'hash', 'hash'}
local function is(i)
  local kind = redis.call('TYPE', KEYS[i]).ok
  return kind == kinds[i] or (kind == 'none' and i > 1)
end
local function documents()
  return is(1) and tonumber(redis.call('HGET', KEYS[1], 'n')) or nil
end
local function held()
  return is(2) and redis.call('VCARD', KEYS[2]) or -1,
    is(3) and redis.call('HLEN', KEYS[3]) or -1,
    is(4) and redis.call('HLEN', KEYS[4]) or -1
end
local function clean()
  for i = 2, 5 do if not is(i) then redis.call('UNLINK', KEYS[i]) end end
end
"""

# KEYS: a shard's. ARGV: ids, each followed by its bucket. Returns -1 if the shard has no marker; else for each document
# its record ("" for none), 1 if it has all its parts (else 0), and the last deletion in its bucket ("" for none).
LOOK = (
    _SHARD
    + """
if not documents() then return -1 end
local v, t, h, d = is(2), is(3), is(4), is(5)
local answers = {}
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  local record = h and redis.call('HGET', KEYS[4], id) or ''
  local whole = 0
  if v and t and #record >= 6 and redis.call('VISMEMBER', KEYS[2], id) == 1 then
    local a, b, c, e = string.byte(record, 3, 6)
    if redis.call('HSTRLEN', KEYS[3], id) == ((a * 256 + b) * 256 + c) * 256 + e then whole = 1 end
  end
  answers[#answers + 1] = record
  answers[#answers + 1] = whole
  answers[#answers + 1] = d and redis.call('HGET', KEYS[5], ARGV[i + 1]) or ''
end
return answers
"""
)

# KEYS: a shard's. ARGV: id; record, bucket and deletion as the look-up saw them; operation; digest; document;
# attributes; vector, or "" if only the metadata differ or, with the document "" too, nothing; quantization; M of the
# graph; "1" if something must be written even when run again, so that WAIT has something to wait for.
# A larger EF than this in a write, which finds the neighbours, makes searches no better.
# Returns 1 created, 2 updated, 3 unchanged, -1 no marker, -2 the document is not as it was seen.
WRITE = (
    _SHARD
    + """
local id, seen, bucket, deletion, operation = unpack(ARGV, 1, 5)
local digest, document, attributes, vector = unpack(ARGV, 6, 9)
local n = documents()
if not n then return -1 end
clean()
local old = redis.call('HGET', KEYS[4], id) or ''
if string.sub(old, 39, 46) == operation then
  if ARGV[12] == '1' then redis.call('HSET', KEYS[4], id, old) end
  return string.byte(old, 47)
end
if old ~= seen then return -2 end
if old == '' and (redis.call('HGET', KEYS[5], bucket) or '') ~= deletion then return -2 end
local outcome = document == '' and 3 or old == '' and 1 or 2
if vector ~= '' then
  redis.call('VADD', KEYS[2], 'FP32', vector, id, ARGV[10], 'SETATTR', attributes, 'EF', 100, 'M', ARGV[11])
elseif document ~= '' and redis.call('VSETATTR', KEYS[2], id, attributes) ~= 1 then
  return -2
end
if document ~= '' then redis.call('HSET', KEYS[3], id, document) end
redis.call('HSET', KEYS[4], id, digest .. operation .. string.char(outcome))
redis.call('HSET', KEYS[1], 'n', math.max(n, redis.call('HLEN', KEYS[4])))
return outcome
"""
)

# KEYS: a shard's, answer. ARGV: operation, then of each document its id, its bucket and its record as it was seen.
# Returns -1 if the shard has no marker; else a letter for each document: "d" deleted, "n" there was none, "c" it is not
# as it was seen. A single part counts as a document. The answer is kept for a minute.
DELETE = (
    _SHARD
    + """
local before = redis.call('GET', KEYS[6])
if before then return before end
local n = documents()
if not n then return -1 end
clean()
local letters = {}
for i = 2, #ARGV, 3 do
  local id = ARGV[i]
  local letter = 'c'
  if (redis.call('HGET', KEYS[4], id) or '') == ARGV[i + 2] then
    local parts = redis.call('VREM', KEYS[2], id) + redis.call('HDEL', KEYS[3], id) + redis.call('HDEL', KEYS[4], id)
    redis.call('HSET', KEYS[5], ARGV[i + 1], ARGV[1])
    letter = parts > 0 and 'd' or 'n'
    if parts > 0 or n > math.max(held()) then n = n - 1 end
  end
  letters[#letters + 1] = letter
end
redis.call('HSET', KEYS[1], 'n', math.max(n, 0))
local answer = table.concat(letters)
redis.call('SET', KEYS[6], answer, 'EX', 60)
return answer
"""
)

# KEYS: a shard's. ARGV: uid. Creates the marker of a shard that is new, or has lost it. Returns 1 if it was missing.
MARK = (
    _SHARD
    + """
if documents() then return 0 end
if not is(1) then redis.call('UNLINK', KEYS[1]) end
redis.call('HSET', KEYS[1], 'uid', ARGV[1], 'n', math.max(0, held()))
return 1
"""
)

# KEYS: a shard's. Returns the number of documents in the marker (-1 without one), then those of v, t and h (-1 for a
# key of another type). All four are the same in a complete shard.
CENSUS = (
    _SHARD
    + """
return {documents() or -1, held()}
"""
)

# KEYS: a shard's. ARGV: ids. Returns for each its value in t; if there is none, 1 if another part of the document
# exists or the shard has lost documents, else 0.
MISSING = (
    _SHARD
    + """
local n = documents() or -1
local lost = n < 0 or n > math.max(held()) or not (is(2) and is(3) and is(4))
local answers = {}
for i, id in ipairs(ARGV) do
  local document = is(3) and redis.call('HGET', KEYS[3], id)
  answers[i] = document or ((lost or redis.call('HEXISTS', KEYS[4], id) == 1
    or redis.call('VISMEMBER', KEYS[2], id) == 1) and 1 or 0)
end
return answers
"""
)
