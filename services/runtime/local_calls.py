"""Calls a server's methods from within its process, through the same interceptors as calls over gRPC.

A front for another protocol uses it, so that authentication, access, quotas, readiness, deadlines, size limits and
telemetry are those of gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.runtime.errors import DeadlineTooShort, Internal, Problem, UpstreamStatus
from services.runtime.interceptors.interceptor import Handler, InterceptorChain, Metadata
from services.runtime.rpc_status import DETAILS_KEY


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call comes from. `end`: its deadline, as a time of the event loop's clock; None: it has none."""

    metadata: Metadata
    auth_context: Mapping[str, Iterable[bytes]]
    end: float | None


class LocalCalls:
    """The methods of one server, by their full names ("/package.Service/Method")."""

    def __init__(self, chain: InterceptorChain) -> None:
        self._chain = chain
        self._services: list[grpc.GenericRpcHandler] = []

    def follow(self, server: grpc.aio.Server) -> None:
        """Has the methods of every servicer that is added to the server from now on."""
        add = server.add_generic_rpc_handlers

        def both(handlers: Iterable[grpc.GenericRpcHandler]) -> None:
            handlers = tuple(handlers)
            self._services += handlers
            add(handlers)

        server.add_generic_rpc_handlers = both  # type: ignore[assignment, method-assign]

    async def begin(self, method: str, origin: Origin) -> LocalCall:
        """A call that is accepted so far. Raises the Problem of one that is refused before its request is read.

        The call counts as in progress until the current task ends.
        """
        refusal = self._chain.refusal(method, origin.metadata)
        if refusal is not None:
            await _run(refusal, None, _Context(origin))
        return LocalCall(self._chain.wrapped(method, self._handler(method, origin)), origin)

    async def bare(self, method: str, request: Message, origin: Origin) -> Any:
        """The response of a unary method, without the interceptors: what this server itself wants to know."""
        behavior: Callable[[Any, Any], Any] | None = self._handler(method, origin).unary_unary
        assert behavior is not None
        return await behavior(request, _Context(origin))

    def _handler(self, method: str, origin: Origin) -> Handler:
        details = cast(grpc.HandlerCallDetails, _Details(method, origin.metadata))
        return next(handler for service in self._services if (handler := service.service(details)) is not None)


class LocalCall:
    """A call whose request has not been read yet. One of its methods is called once."""

    def __init__(self, handler: Handler, origin: Origin) -> None:
        self._handler, self._origin = handler, origin

    async def unary(self, request: Message) -> bytes:
        """The serialised response. Raises the Problem that the caller shall see."""
        async with _deadline(self._origin.end):
            return cast(bytes, await _run(self._handler, request.SerializeToString(), _Context(self._origin)))

    async def stream(self, requests: AsyncIterator[Message]) -> AsyncGenerator[bytes, None]:
        """The serialised responses of a call with a stream in both directions. Raises as `unary` does.

        Closing it cancels the call.
        """
        context = _Context(self._origin)

        async def work() -> None:
            try:
                async with _deadline(self._origin.end):
                    await _run(self._handler, _serialised(requests), context)
            finally:
                context.responses.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (response := await context.responses.get()) is not None:
                context.room.release()
                yield response
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: Metadata


class _Context:
    """What interceptors and handlers use of a `grpc.aio.ServicerContext`."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.status: status_pb2.Status | None = None
        self._code: grpc.StatusCode | None = None
        self.responses: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(1)  # a stream waits for the reader of its last response

    def invocation_metadata(self) -> Metadata:
        return self._origin.metadata

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._origin.auth_context

    def time_remaining(self) -> float | None:
        end = self._origin.end
        return None if end is None else end - asyncio.get_running_loop().time()

    def code(self) -> grpc.StatusCode | None:
        return self._code

    async def write(self, response: bytes) -> None:
        await self.room.acquire()
        self.responses.put_nowait(response)

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Metadata = ()) -> NoReturn:
        self._code = code
        rich = next((value for key, value in trailing_metadata if key == DETAILS_KEY), None)
        assert isinstance(rich, bytes)  # services.runtime.rpc_status.abort sends it always
        self.status = status_pb2.Status.FromString(rich)
        raise grpc.aio.AbortError(details)

    def problem(self) -> Problem:
        if self.status is None or self._code is None:
            return Internal()
        info = error_details_pb2.ErrorInfo()
        reason = next((info.reason for detail in self.status.details if detail.Unpack(info)), self._code.name)
        return UpstreamStatus(self.status, self._code, reason)


async def _run(handler: Handler, request: Any, context: _Context) -> Any:
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    behavior: Callable[[Any, Any], Any] = getattr(handler, kind)
    try:
        return await behavior(request, context)
    except grpc.aio.AbortError:
        raise context.problem() from None


async def _serialised(requests: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.SerializeToString()


@asynccontextmanager
async def _deadline(end: float | None) -> AsyncIterator[None]:
    """Cancels what runs within it at `end`, as grpc does, and raises DeadlineTooShort then."""
    limit = asyncio.timeout_at(end)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineTooShort from None
