"""Wraps handlers of all four call kinds (request and response unary or streaming).

An interceptor subclasses `Interceptor` and implements the hooks that it needs, once for all kinds: `admit` to refuse a
call, `call` to run code around the handler, `failed` for its exceptions, `request` and `finisher` for each message.
`InterceptorChain` is registered with grpc. It wraps a handler in all interceptors on the first call, not on every call,
because calls differ only in their contexts.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Any, TypeAlias

import grpc

# Generic in the stubs, not at run time.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior: TypeAlias = "Callable[[Any, Context], Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

# Probes and reflection have no bearer token and must be answered while the model loads.
_INFRASTRUCTURE = ("/grpc.health.v1.", "/grpc.reflection.")

# If a client has disconnected, a write may fail before grpc.aio notices that and cancels the call.
_NOTICED_SECONDS = 1.0


def is_infrastructure(method: str) -> bool:
    """True for health and reflection."""
    return method.startswith(_INFRASTRUCTURE)


class Interceptor:
    """Hooks around each handler. The base class does nothing."""

    infrastructure = True
    """Whether the interceptor also applies to health and reflection."""

    def admit(self, context: Context) -> None:
        """Raises a Problem to refuse the call, before its handler runs."""

    def call(self, method: str, context: Context) -> AbstractContextManager[None]:
        """A context manager around one call. The handler's exceptions are raised at its `yield`."""
        raise NotImplementedError

    async def failed(self, context: Context, error: BaseException) -> None:
        """Handles an exception of the handler. If it returns, the exception propagates outwards."""

    def decoder(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """The request deserializer to use instead of `decode`."""
        return decode

    def request(self, request: Any) -> Any:
        """Receives each decoded request before the handler, within `call`. Returns the request for the handler."""
        return request

    def finisher(self, method: str, encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
        """A response serializer that runs within `call`, unlike `encode`, which runs outside. None: use `encode`."""
        return None

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, wrapped in this interceptor."""
        if not self.infrastructure and is_infrastructure(method):
            return handler
        streams_in = handler.request_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behavior = getattr(handler, kind)
        encode = handler.response_serializer
        # A coroutine that responds with a stream writes to the context and bypasses the interceptors.
        yields = not handler.response_streaming or inspect.isasyncgenfunction(behavior)
        finish = self.finisher(method, encode) if yields else None
        if finish or type(self).admit is not Interceptor.admit or type(self).request is not Interceptor.request:
            behavior = self._entering(behavior, streams_in, finish)
        if type(self).call is not Interceptor.call:
            behavior = self._calling(behavior, method.lstrip("/"))
        if type(self).failed is not Interceptor.failed:
            behavior = self._catching(behavior)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            behavior,
            request_deserializer=self.decoder(handler.request_deserializer),
            response_serializer=None if finish else encode,
        )
        return wrapped

    # Each of these keeps the kind of function, by which grpc distinguishes handlers: a streaming response is an
    # asynchronous generator, or a coroutine that writes to the context and returns nothing.

    def _entering(self, behavior: Behavior, streams_in: bool, finish: Callable[[Any], bytes] | None) -> Behavior:
        looks = type(self).request is not Interceptor.request
        see = self._each if streams_in and looks else self.request
        leave = finish or _untouched
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                self.admit(context)
                async with aclosing(behavior(see(request), context)) as responses:
                    async for response in responses:
                        yield leave(response)

            return many

        async def single(request: Any, context: Context) -> Any:
            self.admit(context)
            return leave(await behavior(see(request), context))

        return single

    def _calling(self, behavior: Behavior, method: str) -> Behavior:
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                with self.call(method, context):
                    async with aclosing(behavior(request, context)) as responses:
                        async for response in responses:
                            yield response

            return many

        async def single(request: Any, context: Context) -> Any:
            with self.call(method, context):
                return await behavior(request, context)

        return single

    def _catching(self, behavior: Behavior) -> Behavior:
        if inspect.isasyncgenfunction(behavior):

            async def many(request: Any, context: Context) -> AsyncIterator[Any]:
                try:
                    async with aclosing(behavior(request, context)) as responses:
                        async for response in responses:
                            yield response
                except (Exception, asyncio.CancelledError) as error:
                    await self.failed(context, error)
                    raise

            return many

        async def single(request: Any, context: Context) -> Any:
            try:
                return await behavior(request, context)
            except (Exception, asyncio.CancelledError) as error:
                await self.failed(context, error)
                raise

        return single

    async def _each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self.request(request)


def _untouched(response: Any) -> Any:
    return response


class InterceptorChain(grpc.aio.ServerInterceptor):
    """All interceptors as one grpc interceptor, outermost first."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._inwards = tuple(reversed(interceptors))
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: a handler and its wrapped form

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Returns the wrapped handler. For an unknown method it returns None, which grpc handles."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            wrapped = handler
            for interceptor in self._inwards:
                wrapped = interceptor.wrap(wrapped, method)
            wrapped = _writing(wrapped)
            known = self._wrapped[method] = handler, wrapped
        return known[1]


def _writing(handler: Handler) -> Handler:
    """The handler, with its asynchronous generator, if it has one, closed by the task that runs the call.

    If a stream is cancelled while a message is being sent, grpc.aio drops the generator. The event loop then finalises
    it in another task, where context variables that the call has set cannot be reset.
    """
    kind = "stream_stream" if handler.request_streaming else "unary_stream"
    behavior = getattr(handler, kind)
    if not inspect.isasyncgenfunction(behavior):
        return handler

    async def write(request: Any, context: Context) -> None:
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                try:
                    await context.write(response)
                except grpc.aio.InternalError:
                    await asyncio.sleep(_NOTICED_SECONDS)
                    raise

    written: Handler = getattr(grpc, f"{kind}_rpc_method_handler")(
        write,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return written
