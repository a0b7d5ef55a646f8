"""Wraps handlers of any kind (unary or streaming, on either side).

An interceptor subclasses `Around` and writes once, for all kinds, what it needs: `admit` to look and refuse, `call` to
run around the handler, `request` to look at each message. A handler is wrapped on its first call, not on each: all that
differs between calls is in their contexts.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc

# Generic in the stubs, not at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior: TypeAlias = "Callable[[Any, Context], Any]"
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

    def __init__(self) -> None:
        self._wrappers: dict[str, tuple[Handler, Handler]] = {}  # by method: a handler and its wrapped form

    def admit(self, context: Context) -> None:
        """Raises what a call is refused with, before its handler runs."""

    def call(self, method: str, context: Context) -> AbstractAsyncContextManager[None]:
        """Runs around one call: code, `yield`, code. What the handler raises is raised at the `yield`."""
        raise NotImplementedError

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
        method = handler_call_details.method
        if handler is None:
            return None
        known = self._wrappers.get(method)
        if known is None or known[0] is not handler:
            known = self._wrappers[method] = handler, self._wrapped(handler, method)
        return known[1]

    def _wrapped(self, handler: Handler, method: str) -> Handler:
        if not self.infrastructure and is_infrastructure(method):
            return handler
        streams_in = handler.request_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behavior = getattr(handler, kind)
        if type(self).request is not Around.request:
            behavior = self._looking(behavior, streams_in)
        if type(self).admit is not Around.admit:
            behavior = self._admitting(behavior)
        if type(self).call is not Around.call:
            behavior = self._calling(behavior, method.lstrip("/"))
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            behavior,
            request_deserializer=self.decoder(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return wrapped

    # Each keeps what grpc tells handlers apart by: a stream is an asynchronous generator, or a coroutine that writes to
    # the context and returns nothing.

    def _looking(self, behavior: Behavior, streams_in: bool) -> Behavior:
        see = self._each if streams_in else self.request
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                async with aclosing(behavior(see(request), context)) as responses:
                    async for response in responses:
                        yield response

            return many

        async def single(request: Any, context: Context) -> Any:
            return await behavior(see(request), context)

        return single

    def _admitting(self, behavior: Behavior) -> Behavior:
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                self.admit(context)
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response

            return many

        async def single(request: Any, context: Context) -> Any:
            self.admit(context)
            return await behavior(request, context)

        return single

    def _calling(self, behavior: Behavior, method: str) -> Behavior:
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                async with self.call(method, context), aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response

            return many

        async def single(request: Any, context: Context) -> Any:
            async with self.call(method, context):
                return await behavior(request, context)

        return single

    async def _each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self.request(request)
