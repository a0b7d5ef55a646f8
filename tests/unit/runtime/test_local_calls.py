"""Calls from within the process pass the interceptors and handlers of calls over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from services.runtime.errors import DeadlineTooShort, InvalidField, Problem, Unauthenticated
from services.runtime.interceptors import DecodingInterceptor, ErrorsInterceptor, Interceptor, InterceptorChain
from services.runtime.interceptors.interceptor import Context, Metadata
from services.runtime.local_calls import LocalCalls, Origin
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

EMBED = "/winnow.embed.v1.EmbedService/Embed"
STREAM = "/winnow.embed.v1.EmbedService/EmbedStream"
REQUEST = embed_pb2.EmbedRequest(texts=["a", "b"])


class Service(embed_pb2_grpc.EmbedServiceServicer):
    """Fails with what it is told to; counts what was cancelled."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def Embed(self, request: embed_pb2.EmbedRequest, context: Context) -> embed_pb2.EmbedResponse:  # noqa: N802
        if self.error:
            raise self.error
        if self.gate:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return embed_pb2.EmbedResponse(results=[embed_pb2.EmbedResult(tokens=len(text)) for text in request.texts])

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[embed_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        try:
            async for request in request_iterator:
                if self.error:
                    raise self.error
                for item in request.items:
                    yield embed_pb2.EmbedStreamResponse(results=[embed_pb2.EmbedStreamResult(id=item.id)])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def GetModel(self, request: embed_pb2.GetModelRequest, context: Context) -> embed_pb2.GetModelResponse:  # noqa: N802
        raise NotImplementedError


class Door(Interceptor):
    """Lets calls with a key in; counts those that came in."""

    def __init__(self) -> None:
        self.entered = 0

    def screen(self, method: str, metadata: Metadata) -> None:
        if ("key", "right") not in metadata:
            raise Unauthenticated

    @contextmanager
    def call(self, method: str, context: Context) -> Iterator[None]:
        self.entered += 1
        yield


class Made:
    """The calls of a service behind a door."""

    def __init__(self) -> None:
        self.service, self.door = Service(), Door()
        chain = InterceptorChain([ErrorsInterceptor(), self.door, DecodingInterceptor(1 << 16, 10)])
        self.calls = LocalCalls(chain)
        server = grpc.aio.server()
        self.calls.follow(server)
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(self.service, server)

    def origin(self, seconds: float | None = 10, key: str = "right") -> Origin:
        end = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return Origin([("key", key)], {}, end)

    async def unary(self, request: Any = REQUEST, seconds: float | None = 10) -> embed_pb2.EmbedResponse:
        call = await self.calls.begin(EMBED, self.origin(seconds))
        return embed_pb2.EmbedResponse.FromString(await call.unary(request))


@pytest.fixture
async def made() -> Made:
    return Made()


async def test_a_call_is_answered(made: Made) -> None:
    assert [result.tokens for result in (await made.unary()).results] == [1, 1]
    assert (await made.unary(seconds=None)).results
    assert made.door.entered == 2


async def test_a_call_is_refused_before_its_request(made: Made) -> None:
    with pytest.raises(Problem) as refused:
        await made.calls.begin(EMBED, made.origin(key="wrong"))
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.reason == "UNAUTHENTICATED"


async def test_a_bare_call_passes_no_interceptor(made: Made) -> None:
    response = await made.calls.bare(EMBED, REQUEST, made.origin(key="wrong"))
    assert len(response.results) == 2
    assert not made.door.entered


async def test_a_problem_reaches_the_caller(made: Made) -> None:
    made.service.error = InvalidField("texts[0]", "is odd")
    with pytest.raises(Problem, match=r"texts\[0\]: is odd") as failed:
        await made.unary()
    assert failed.value.reason == "INVALID_FIELD"


async def test_another_error_becomes_an_incident(made: Made) -> None:
    made.service.error = RuntimeError("a secret")
    with pytest.raises(Problem, match="incident") as failed:
        await made.unary()
    assert failed.value.code is grpc.StatusCode.INTERNAL
    assert "secret" not in failed.value.message


async def test_limits_of_messages_hold(made: Made) -> None:
    with pytest.raises(Problem, match="bytes"):
        await made.unary(embed_pb2.EmbedRequest(texts=["x" * (1 << 16)]))


async def test_the_deadline_cancels_the_handler(made: Made) -> None:
    made.service.gate = asyncio.Event()
    with pytest.raises(DeadlineTooShort):
        await made.unary(seconds=0.01)
    assert made.service.cancelled == 1


async def test_a_stream_is_answered_and_waits_for_its_reader(made: Made) -> None:
    taken: list[int] = []

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for number in range(10):
            taken.append(number)
            yield embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id=f"{number}")])

    call = await made.calls.begin(STREAM, made.origin(None))
    responses = call.stream(requests())
    first = embed_pb2.EmbedStreamResponse.FromString(await anext(responses))
    assert first.results[0].id == "0"
    assert len(taken) < 5
    rest = [embed_pb2.EmbedStreamResponse.FromString(data).results[0].id async for data in responses]
    assert rest == [f"{number}" for number in range(1, 10)]


async def test_a_stream_fails(made: Made) -> None:
    made.service.error = InvalidField("items", "are odd")

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        yield embed_pb2.EmbedStreamRequest()

    call = await made.calls.begin(STREAM, made.origin())
    with pytest.raises(Problem, match="items: are odd"):
        await anext(call.stream(requests()))


async def test_a_stream_that_is_left_is_cancelled(made: Made) -> None:
    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        yield embed_pb2.EmbedStreamRequest(items=[embed_pb2.EmbedStreamItem(id="0")])
        await asyncio.Event().wait()

    call = await made.calls.begin(STREAM, made.origin())
    responses = call.stream(requests())
    await anext(responses)
    await responses.aclose()
    await until(lambda: made.service.cancelled)
