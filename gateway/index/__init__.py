"""Collections of documents in Redis vector sets.

A collection is a number of shards. A shard is five keys under one hash tag, so that they lie on one node and a document
changes in all of them at once:

    winnow:i:{uid.k}:c   hash, the marker: `uid`, and `n`, how many documents there should be. Without it nothing is
                         written, so that writes to a removed collection find nothing to write to
    winnow:i:{uid.k}:v   the vector set: document id → vector, metadata in the form that filters see as its attributes
    winnow:i:{uid.k}:t   hash: document id → text and metadata, in one value, so that they are read as of one version
    winnow:i:{uid.k}:h   hash: document id → digest of text and metadata, the operation that wrote it, its outcome
    winnow:i:{uid.k}:d   hash: bucket of ids → the last operation that deleted one of them

`uid` is random for each collection: neither names nor ids ever reach into another collection's keys, and a collection
created again under an old name begins empty. None of these keys has a TTL, so that `maxmemory-policy volatile-lfu`
evicts only the cache. (Answers to changes, which have one, are kept only for clients that send a change twice.)

All the same a key may be lost: evicted under another policy, or deleted by hand. In a whole shard c, v, t and h count
the same; each search compares them. A document that is upserted again gets back every part that it lost.
"""
