"""EmbedService.EmbedStream at the wire, over a real engine."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from services.api.vectors import decode
from tests.support.serving import details, rich_status
from tests.support.tiny import ServedWorker, Tiny, embedding, held, until_queued
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


@pytest.fixture
async def worker(tiny: Tiny) -> AsyncIterator[ServedWorker]:
    async with embedding(tiny) as served:
        yield served


@pytest.fixture
def stub(worker: ServedWorker) -> "embed_pb2_grpc.EmbedServiceAsyncStub":
    return embed_pb2_grpc.EmbedServiceStub(worker.channel)


def message(*texts: str, first: int = 0, **options: Any) -> embed_pb2.EmbedStreamRequest:
    items = [embed_pb2.EmbedStreamItem(id=str(first + i), text=text) for i, text in enumerate(texts)]
    return embed_pb2.EmbedStreamRequest(items=items, options=embed_pb2.EmbedOptions(**options) if options else None)


async def answers(call: AsyncIterable[embed_pb2.EmbedStreamResponse]) -> dict[str, embed_pb2.EmbedResult]:
    return {result.id: result.result async for response in call for result in response.results}


async def gathered(call: AsyncIterable[embed_pb2.EmbedStreamResponse], seen: list[str]) -> None:
    async for response in call:
        seen += [result.id for result in response.results]


async def test_every_item_is_answered_by_its_id(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    texts = [f"gravity {i} attracts" for i in range(300)]
    messages = [message(*texts[i : i + 70], first=i) for i in range(0, 300, 70)]
    seen = await answers(stub.EmbedStream(iter(messages), timeout=30))
    assert sorted(seen, key=int) == [str(i) for i in range(300)]
    unary = await stub.Embed(embed_pb2.EmbedRequest(texts=texts[:5]), timeout=30)
    for index, result in enumerate(unary.results):
        np.testing.assert_allclose(decode(seen[str(index)].embedding), decode(result.embedding), atol=1e-5)


async def test_options_of_the_first_message_hold_for_all(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    first = embed_pb2.EmbedStreamRequest(
        options=embed_pb2.EmbedOptions(
            input_type=embed_pb2.INPUT_TYPE_QUERY, dimensions=32, encoding=embed_pb2.ENCODING_FLOAT16
        )
    )
    call = stub.EmbedStream(iter([first, message("gravity"), message("capital", first=1)]), timeout=30)
    responses = [response async for response in call]
    model = (await stub.GetModel(embed_pb2.GetModelRequest(), timeout=10)).model
    assert all(response.model == model for response in responses)
    seen = {result.id: result.result for response in responses for result in response.results}
    unary = await stub.Embed(
        embed_pb2.EmbedRequest(
            texts=["gravity", "capital"],
            input_type=embed_pb2.INPUT_TYPE_QUERY,
            dimensions=32,
            encoding=embed_pb2.ENCODING_FLOAT16,
        ),
        timeout=30,
    )
    assert [seen["0"].embedding.data, seen["1"].embedding.data] == [r.embedding.data for r in unary.results]


async def test_the_same_id_twice_is_answered_twice(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    items = [embed_pb2.EmbedStreamItem(id="same", text=text) for text in ("gravity", "", "capital")]
    call = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest(items=items)]), timeout=30)
    results = [result async for response in call for result in response.results]
    assert [result.id for result in results] == ["same"] * 3
    assert len({result.result.embedding.data for result in results}) == 3


async def test_an_empty_stream_ends_well(stub: "embed_pb2_grpc.EmbedServiceAsyncStub") -> None:
    assert await answers(stub.EmbedStream(iter([]), timeout=10)) == {}
    assert await answers(stub.EmbedStream(iter([message(), message()]), timeout=10)) == {}


async def test_a_bad_item_fails_alone(tiny: Tiny) -> None:
    async with embedding(tiny, max_text_bytes=4000) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        first = message("gravity", "word " * 700, "x" * 4001, "capital", truncation=common_pb2.TRUNCATION_ERROR)
        first.items.add(id="i" * 513, text="gravity")
        seen = await answers(stub.EmbedStream(iter([first]), timeout=30))
    failed = {
        key: [v.field for v in details(result.error, error_details_pb2.BadRequest)[0].field_violations]
        for key, result in seen.items()
        if result.HasField("error")
    }
    assert failed == {"1": ["items[1].text"], "2": ["items[2].text"], "i" * 513: ["items[4].id"]}
    assert all(seen[key].HasField("embedding") for key in ("0", "3"))


@pytest.mark.parametrize(
    ("second", "fields"),
    [
        (message("x", dimensions=32), ["options"]),
        (message(*["x"] * 2049), ["items"]),
    ],
)
async def test_a_wrong_message_ends_the_stream_after_what_was_taken(
    stub: "embed_pb2_grpc.EmbedServiceAsyncStub", second: embed_pb2.EmbedStreamRequest, fields: list[str]
) -> None:
    call = stub.EmbedStream(iter([message("gravity", "capital"), second]), timeout=30)
    seen: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await gathered(call, seen)
    status = rich_status(error.value)
    assert (status.code, status.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        fields,
    )
    assert sorted(seen) == ["0", "1"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dimensions": 31}, "options.dimensions"),
        ({"encoding": 99}, "options.encoding"),
        ({"instruction": "Find."}, "options.instruction"),
        ({"max_tokens": 3}, "options.max_tokens"),
    ],
)
async def test_wrong_options_are_named(
    stub: "embed_pb2_grpc.EmbedServiceAsyncStub", options: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await answers(stub.EmbedStream(iter([message("x", **options)]), timeout=10))
    assert rich_status(error.value).fields == [field]


async def test_a_fast_sender_is_slowed_not_refused(tiny: Tiny) -> None:
    """A queue of 600 tokens, and twenty times that sent as fast as it is taken."""
    async with embedding(tiny, queue_tokens=600, batch_tokens=64) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        texts = [f"gravity attracts {i}" for i in range(1500)]
        messages = [message(*texts[i : i + 100], first=i) for i in range(0, 1500, 100)]
        read = 0

        async def sending() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
            nonlocal read
            for one in messages:
                read += 1
                yield one

        with held(served.worker):
            call = stub.EmbedStream(sending(), timeout=50)
            await until_queued(served.worker, 32)
            assert served.worker.engine().stats().queued_tokens <= 600
        seen = await answers(call)
        assert len(seen) == 1500
        assert all(result.HasField("embedding") for result in seen.values())


async def test_a_stream_waits_where_others_have_filled_the_queue(tiny: Tiny) -> None:
    async with embedding(tiny, queue_tokens=600, batch_tokens=64) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        with held(served.worker):
            other = stub.Embed(embed_pb2.EmbedRequest(texts=["gravity attracts two bodies"] * 80), timeout=30)
            await until_queued(served.worker, 480)
            call = stub.EmbedStream(iter([message(*["the capital of China is"] * 40)]), timeout=30)
        assert len((await other).results) == 80
        assert len(await answers(call)) == 40


@pytest.mark.parametrize("priority", [common_pb2.PRIORITY_INTERACTIVE, common_pb2.PRIORITY_BULK])
async def test_a_stream_is_answered_however_short_the_queue_is(tiny: Tiny, priority: "common_pb2.Priority") -> None:
    """Each of its chunks is longer."""
    async with embedding(tiny, queue_seconds=1e-3) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        messages = [
            message(*[f"gravity attracts {i}" for i in range(first, first + 100)], first=first)
            for first in range(0, 500, 100)
        ]
        messages[0].options.priority = priority
        with held(served.worker):
            call = stub.EmbedStream(iter(messages), timeout=50)
            await until_queued(served.worker, 64)
        seen = await answers(call)
        assert len(seen) == 500
        assert all(result.HasField("embedding") for result in seen.values())


async def test_when_the_process_drains_what_was_taken_is_answered(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    call = stub.EmbedStream(timeout=30)
    with held(worker.worker):
        await call.write(message("gravity", "capital"))
        await until_queued(worker.worker)
        worker.lifecycle.stop()
    first = await call.read()
    assert isinstance(first, embed_pb2.EmbedStreamResponse)
    assert sorted(result.id for result in first.results) == ["0", "1"]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    status = rich_status(error.value)
    assert (status.code, status.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "NOT_READY",
    )
    await asyncio.wait_for(worker.lifecycle.idle(), 10)


async def test_an_idle_stream_does_not_hold_up_the_end(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    call = stub.EmbedStream(timeout=30)
    await call.write(message("gravity"))
    await call.read()
    worker.lifecycle.stop()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert rich_status(error.value).reason == "NOT_READY"


async def test_a_caller_who_leaves_frees_everything(
    worker: ServedWorker, stub: "embed_pb2_grpc.EmbedServiceAsyncStub"
) -> None:
    with held(worker.worker):
        call = stub.EmbedStream(timeout=30)
        await call.write(message(*["word " * 50] * 64))
        await until_queued(worker.worker, 500)
        call.cancel()
        await asyncio.wait_for(worker.lifecycle.idle(), 10)
        assert worker.worker.engine().stats().queued_tokens == 0


async def test_answers_that_are_too_large_for_one_message_come_in_several(tiny: Tiny) -> None:
    async with embedding(tiny, max_message_bytes=1 << 16) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        ids = [f"{n}-" + "i" * 500 for n in range(64)]  # they are echoed
        items = [embed_pb2.EmbedStreamItem(id=id_, text="gravity") for id_ in ids]
        options = embed_pb2.EmbedOptions(encoding=embed_pb2.ENCODING_FLOAT_LIST)
        # Together they are one chunk of the stream, as they fit into one request.
        call = stub.EmbedStream(iter([embed_pb2.EmbedStreamRequest(items=items, options=options)]), timeout=30)
        responses = [response async for response in call]
        assert [result.id for response in responses for result in response.results] == ids
        assert max(response.ByteSize() for response in responses) <= 1 << 16
