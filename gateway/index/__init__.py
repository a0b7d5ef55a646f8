"""Collections of documents in Redis vector sets.

A collection is a number of shards. A shard is four keys under one hash tag, so that they lie on one node and a document
changes in all of them at once:

    winnow:i:{uid.k}:c   that the shard exists: writes to a removed collection find nothing to write to
    winnow:i:{uid.k}:v   the vector set: document id → vector, metadata as its attributes
    winnow:i:{uid.k}:t   hash: document id → text
    winnow:i:{uid.k}:h   hash: document id → digest of text and metadata

`uid` is random for each collection: neither names nor ids ever reach into another collection's keys, and a collection
created again under an old name begins empty. None of these keys has a TTL, so that `maxmemory-policy volatile-lfu`
evicts only the cache.
"""
