"""Workarounds for faults of grpc.aio and grpc_health, each seen in version 1.85.1.

`tests/unit/runtime/test_grpc_workarounds.py` states of each fault that grpc is right by itself, as an expected failure:
a test that passes after an upgrade says that its workaround can go. These stand where they are used:

- `telemetry.client.ClientTelemetry.unary` awaits a call, not its `code()`: a call that cannot start has no status.
- `rpc_status.is_stray`: a CancelledError that nobody sent ends a handler without a status, and its client hangs.
- `interceptors.errors` clears the traceback of an AbortError: grpc keeps the exception in the state of the call, in a
  cycle that also holds the request, and keeps the state of the last call.
- `interceptors.interceptor._writing` closes the generator of a cancelled stream, which grpc.aio drops.
- `reloading_channel`: a channel's certificates are fixed for its life (grpc/grpc issue 41779).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

Continuation: TypeAlias = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]
Intercept: TypeAlias = Callable[[Continuation, grpc.aio.ClientCallDetails, Any], Awaitable[Any]]


def use_generic_handlers(server: grpc.aio.Server) -> None:
    """Lets servicers add their methods by a generic handler alone. Call it before any servicer is added.

    Generated code adds each method a second time, as a registered one. For each of those grpc.aio keeps a future, and
    it waits on all of them at every call.
    """

    def ignore(service_name: str, method_handlers: object) -> None:
        pass

    server.add_registered_method_handlers = ignore  # type: ignore[method-assign]


class Health(health_aio.HealthServicer):  # type: ignore[misc]  # the package has no stubs
    """The health service with watches that can be ended. Without that, `Server.stop` waits for them all its grace."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Ends all watches with UNAVAILABLE."""
        self._closed.set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Sends the state, and each change of it."""
        watching = asyncio.create_task(super().Watch(request, context))
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((watching, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            closing.cancel()
            await asyncio.gather(watching, closing, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")


def client_interceptors(unary: Intercept, stream: Intercept) -> list[grpc.aio.ClientInterceptor]:
    """One interceptor for each kind of call: `unary` for unary-unary calls, `stream` for all others.

    One object of four base classes would not do: grpc.aio uses it only for the first kind that it is an instance of.
    """
    return [_UnaryUnary(unary), _UnaryStream(stream), _StreamUnary(stream), _StreamStream(stream)]


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, intercept: Intercept) -> None:
        self._intercept = intercept

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, intercept: Intercept) -> None:
        self._intercept = intercept

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, intercept: Intercept) -> None:
        self._intercept = intercept

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, intercept: Intercept) -> None:
        self._intercept = intercept

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._intercept(continuation, client_call_details, request_iterator)
