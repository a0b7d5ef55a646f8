"""The Lua scripts of the index. Each runs atomically on one node: all its keys share a hash tag.

They are sent whole (EVAL), not by digest: a few hundred bytes, and a node that took over knows them at once.
"""

# KEYS: collections, aliases, trash. ARGV: name, uid, description. Gives 0 where the name is taken.
CREATE = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[3]) == 0 then return 0 end
redis.call('HDEL', KEYS[3], ARGV[2])
return 1
"""

# KEYS: collections, aliases. ARGV: name or alias. Gives {name, description} or nothing.
RESOLVE = """
local name = ARGV[1]
local found = redis.call('HGET', KEYS[1], name)
if not found then
  name = redis.call('HGET', KEYS[2], name)
  found = name and redis.call('HGET', KEYS[1], name)
end
return found and {name, found} or {}
"""

# KEYS: collections, aliases, trash. ARGV: name, uid, trash entry. Gives 1 where that very collection was removed.
REMOVE = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if not found or cjson.decode(found).uid ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
local aliases = redis.call('HGETALL', KEYS[2])
for i = 1, #aliases, 2 do
  if aliases[i + 1] == ARGV[1] then redis.call('HDEL', KEYS[2], aliases[i]) end
end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
return 1
"""

# KEYS: collections, aliases. Gives both hashes as of one moment.
LIST = """
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
"""

# KEYS: collections, aliases. ARGV: alias, collection. Gives 1, or 0 where there is no such collection, or -1 where the
# alias is a collection's name.
SET_ALIAS = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return -1 end
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""

# KEYS: c, v, t, h of a shard. ARGV: id, quantisation, digest, text, metadata, vector or "" where only the metadata
# differ, "1" where an unchanged document must be written again, so that WAIT has something to wait for, and the graph's
# links. A write that looks for its neighbours with more effort (EF) than this makes searches no better.
# Gives 1 created, 2 updated, 3 unchanged, -1 no such shard, -2 the document is not as the caller thought.
WRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local old = redis.call('HGET', KEYS[4], ARGV[1])
if old == ARGV[3] then
  if ARGV[7] == '1' then redis.call('HSET', KEYS[4], ARGV[1], old) end
  return 3
end
if ARGV[6] ~= '' then
  redis.call('VADD', KEYS[2], 'FP32', ARGV[6], ARGV[1], ARGV[2], 'SETATTR', ARGV[5], 'EF', 100, 'M', ARGV[8])
else
  if not old or string.sub(old, 1, 18) ~= string.sub(ARGV[3], 1, 18) then return -2 end
  redis.call('VSETATTR', KEYS[2], ARGV[1], ARGV[5])
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[4])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
return old and 2 or 1
"""

# KEYS: v, t, h of a shard. ARGV: ids. Gives how many there were.
DELETE = """
local gone = 0
for _, id in ipairs(ARGV) do
  gone = gone + redis.call('HDEL', KEYS[3], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('VREM', KEYS[1], id)
end
return gone
"""
