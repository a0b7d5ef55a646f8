"""Collections of documents in Redis vector sets.

A collection has one or more shards. A shard is five keys with one hash tag, so that they are on one node and a document
changes in all of them atomically:

    winnow:i:{uid.k}:c   hash, the marker: `uid`, and `n`, the expected number of documents. Without it nothing is
                         written, so that a late write to a removed collection has no effect
    winnow:i:{uid.k}:v   the vector set: document id → vector; its attributes are the metadata in the form for filters
    winnow:i:{uid.k}:t   hash: document id → text and metadata, in one value, so that both are read as of one version
    winnow:i:{uid.k}:h   hash: document id → digest of text and metadata, the operation that wrote it, its outcome
    winnow:i:{uid.k}:d   hash: bucket of ids → the last operation that deleted one of them

`uid` is random for each collection: no name or id reaches the keys of another collection, and a collection that is
created again under an old name is empty. None of these keys has a TTL, so that `maxmemory-policy volatile-lfu` evicts
only the cache. (The answers to changes have a TTL: they are kept only for clients that send a change twice.)

A key may still be lost: evicted under another policy, or deleted by hand. In a complete shard c, v, t and h have the
same count; each search compares them. A document that is upserted again gets back every part that it lost.
"""
