"""EmbedStream through the gateway: every item is answered, and a fast sender is slowed."""

import asyncio
from collections.abc import AsyncIterator

from tests.support.gateway import running
from tests.support.redis import RedisProcess
from tests.support.vectors import request
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2


async def test_embed_stream(redis8: RedisProcess) -> None:
    async def stream() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        yield embed_pb2.EmbedStreamRequest(
            options=embed_pb2.EmbedOptions(dimensions=32, encoding=embed_pb2.ENCODING_FLOAT16)
        )
        for start in range(0, 300, 100):
            yield embed_pb2.EmbedStreamRequest(items=[
                embed_pb2.EmbedStreamItem(id=f"id {number % 290}", text=f"text {number % 290}")
                for number in range(start, start + 100)
            ])  # fmt: skip

    async with running(redis8.url, stream_window_tokens=2000) as gateway:
        results = [result async for response in gateway.embed.EmbedStream(stream()) for result in response.results]
        assert sorted(result.id for result in results) == sorted(f"id {number % 290}" for number in range(300))
        one = (await gateway.embed.Embed(request(["text 42"], dimensions=32, encoding=2))).results[0]
        assert next(result.result.embedding for result in results if result.id == "id 42") == one.embedding
        assert all(call.priority == common_pb2.PRIORITY_BULK for call in gateway.embed_worker.requests)


async def test_embed_stream_is_slowed_not_refused(redis8: RedisProcess) -> None:
    read = 0

    async def stream() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        nonlocal read
        for number in range(200):
            read += 1
            yield embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id=str(number), text="x" * 292)])

    async with running(redis8.url, stream_window_tokens=1000) as gateway:
        gateway.embed_worker.gate = asyncio.Event()
        call = gateway.embed.EmbedStream(stream())
        await gateway.embed_worker.waiting.wait()
        assert read < 200
        gateway.embed_worker.gate.set()
        assert len([result async for response in call for result in response.results]) == 200
