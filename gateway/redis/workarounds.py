"""Workarounds for faults of redis-py, each seen in version 8.1.0.

`tests/unit/gateway/redis/test_workarounds.py` states of them that redis-py is right by itself, as expected failures: a
test that passes after an upgrade says that its workaround can go. Two workarounds are in other files:

- `node.Node` has a queue of its own: a pool of redis-py raises when all its connections are in use.
- `topology.Topology.moved` ignores the KeyError that RedisCluster raises for a slot that no server had.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ClusterDownError, RedisClusterException, RedisError

UNBOUNDED = 1 << 30
"""For `max_connections`: redis-py raises at its limit, while `node.Node` queues."""


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Raises the cause of a RedisClusterException instead: that exception is not a RedisError."""
    try:
        yield
    except RedisClusterException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, RedisError | OSError):
            cause = cause.__cause__ or cause.__context__
        raise cause or ClusterDownError("the cluster cannot be reached") from error


def response_callbacks(pool: ConnectionPool) -> dict[str, Any]:
    """redis-py's conversions of replies, without those of vector sets, which differ between its versions."""
    callbacks = aioredis.Redis(connection_pool=pool).response_callbacks
    return {str(name): callback for name, callback in callbacks.items() if not str(name).startswith("V")}


def transport_of(connection: Any) -> asyncio.WriteTransport:
    """The transport of an open connection, to be aborted after `disconnect(nowait=True)`.

    `disconnect` closes the transport and forgets it. A closed transport first sends its buffer: if the server reads
    nothing, the socket stays open.
    """
    return cast(asyncio.WriteTransport, connection._writer.transport)
