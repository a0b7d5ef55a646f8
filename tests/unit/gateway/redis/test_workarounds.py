"""States of faults that gateway.redis.workarounds lists that redis-py is right by itself.

All are expected to fail. One that passes after an upgrade of redis-py fails the suite: its workaround can go.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio.connection import Connection, ConnectionPool
from redis.exceptions import MaxConnectionsError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

MORE_THAN_SOCKETS_HOLD = 64 << 20


def fault(raises: type[Exception]) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason="a fault of redis-py 8.1.0", strict=True, raises=raises)


@asynccontextmanager
async def server_that_reads_nothing() -> AsyncIterator[int]:
    """The port of a server that accepts connections and never reads."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def options(port: int) -> dict[str, Any]:
    """Of a connection that sends nothing when it is made."""
    return {"host": "127.0.0.1", "port": port, "protocol": 2, "driver_info": None, "socket_timeout": 0.2}


@fault(AssertionError)
async def test_a_connection_that_is_closed_without_waiting_holds_nothing_back() -> None:
    async with server_that_reads_nothing() as port:
        connection = Connection(**options(port))
        await connection.connect()  # type: ignore[no-untyped-call]
        assert connection._writer is not None
        transport = connection._writer.transport
        try:
            with pytest.raises(RedisTimeoutError):
                await connection.send_packed_command([bytes(MORE_THAN_SOCKETS_HOLD)])
            assert not connection.is_connected
            assert transport.get_write_buffer_size() == 0
        finally:
            transport.abort()


@fault(MaxConnectionsError)
async def test_a_pool_waits_for_a_connection() -> None:
    async with server_that_reads_nothing() as port:
        pool = ConnectionPool(max_connections=1, **options(port))
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(2):
                await pool.get_connection()  # type: ignore[no-untyped-call]
        finally:
            await pool.release(connection)
            await pool.disconnect()


@fault(AssertionError)
def test_errors_of_a_cluster_are_errors_of_redis() -> None:
    assert issubclass(RedisClusterException, RedisError)
