"""Wraps a handler of any kind (unary or streaming, on either side) in one asynchronous context manager.

An interceptor subclasses `Around` and writes `call` once: code before the handler, `yield`, code after it. What the
handler raises is raised at the `yield`.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc

# Generic in the stubs, not at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

# Probes and reflection carry no token, no deadline worth refusing, and must answer while the model loads.
_INFRASTRUCTURE = ("/grpc.health.v1.", "/grpc.reflection.")


def is_infrastructure(method: str) -> bool:
    """True for health and reflection."""
    return method.startswith(_INFRASTRUCTURE)


class Around(grpc.aio.ServerInterceptor):
    """An interceptor that runs around each handler."""

    infrastructure = True
    """Whether it also runs around health and reflection."""

    @abc.abstractmethod
    def call(self, details: grpc.HandlerCallDetails, context: Context) -> AbstractAsyncContextManager[None]:
        """Runs around one call."""

    def decoder(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """The request deserializer to use in the place of `decode`."""
        return decode

    def request(self, request: Any) -> Any:
        """Sees each decoded request before the handler does, within `call`."""
        return request

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Wraps the handler that the inner interceptors give; an unknown method (None) is left to grpc."""
        handler = await continuation(handler_call_details)
        if handler is None or (not self.infrastructure and is_infrastructure(str(handler_call_details.method))):
            return handler
        return self._wrapped(handler, handler_call_details)

    def _wrapped(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        streams_in = handler.request_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behavior = getattr(handler, kind)

        looks = type(self).request is not Around.request

        def seen(request: Any) -> Any:
            if not looks:
                return request
            return self._each(request) if streams_in else self.request(request)

        async def single(request: Any, context: Context) -> Any:
            # Also the handlers of streams that write to the context and return nothing.
            async with self.call(details, context):
                return await behavior(seen(request), context)

        async def many(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self.call(details, context), aclosing(behavior(seen(request), context)) as responses:
                async for response in responses:
                    yield response

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            many if inspect.isasyncgenfunction(behavior) else single,
            request_deserializer=self.decoder(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped

    async def _each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self.request(request)
