"""Wraps handlers of all four call kinds (request and response unary or streaming).

An interceptor subclasses `Interceptor` and implements the hooks that it needs, once for all kinds: `screen` to refuse a
call before its request is read, `admit` to refuse it with its context, `call` to run code around the handler, `failed`
for its exceptions, `reader` and `finisher` for each message.
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
Metadata: TypeAlias = "Sequence[tuple[str, str | bytes]]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

HEALTH = "/grpc.health.v1."
REFLECTION = "/grpc.reflection."

# If a client has disconnected, a write may fail before grpc.aio notices that and cancels the call.
_NOTICED_SECONDS = 1.0


class Interceptor:
    """Hooks around each handler. The base class does nothing."""

    exempt: tuple[str, ...] = ()
    """Beginnings of the methods that the interceptor leaves alone."""

    def screen(self, method: str, metadata: Metadata) -> None:
        """Raises a Problem to refuse the call before grpc reads its request, which may be large."""

    def admit(self, context: Context) -> None:
        """Raises a Problem to refuse the call, before its handler runs."""

    def call(self, method: str, context: Context) -> AbstractContextManager[None]:
        """A context manager around one call. The handler's exceptions are raised at its `yield`."""
        raise NotImplementedError

    async def failed(self, context: Context, error: BaseException) -> None:
        """Handles an exception of the handler. If it returns, the exception propagates outwards."""

    def reader(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """A request deserializer that runs within `call`, unlike `decode`, which runs outside. None: use `decode`."""
        return None

    def finisher(self, method: str, encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
        """A response serializer that runs within `call`, unlike `encode`, which runs outside. None: use `encode`."""
        return None

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, wrapped in this interceptor."""
        if method.startswith(self.exempt):
            return handler
        streams_in = handler.request_streaming
        kind = f"{'stream' if streams_in else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
        behavior = getattr(handler, kind)
        decode, encode = handler.request_deserializer, handler.response_serializer
        read = self.reader(decode)
        # A coroutine that responds with a stream writes to the context and bypasses the interceptors.
        yields = not handler.response_streaming or inspect.isasyncgenfunction(behavior)
        finish = self.finisher(method, encode) if yields else None
        if read or finish or type(self).admit is not Interceptor.admit:
            behavior = self._entering(behavior, _each(read) if read and streams_in else read, finish)
        if type(self).call is not Interceptor.call:
            behavior = self._calling(behavior, method.lstrip("/"))
        if type(self).failed is not Interceptor.failed:
            behavior = self._catching(behavior)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: Handler = make(
            behavior,
            request_deserializer=None if read else decode,
            response_serializer=None if finish else encode,
        )
        return wrapped

    # Each of these keeps the kind of function, by which grpc distinguishes handlers: a streaming response is an
    # asynchronous generator, or a coroutine that writes to the context and returns nothing.

    def _entering(
        self, behavior: Behavior, read: Callable[[Any], Any] | None, finish: Callable[[Any], bytes] | None
    ) -> Behavior:
        see, leave = read or _untouched, finish or _untouched
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
                del request  # what `failed` raises refers to this function
                await self.failed(context, error)
                raise

        return single


def _untouched(message: Any) -> Any:
    return message


def _each(read: Callable[[bytes], Any]) -> Callable[[AsyncIterator[bytes]], AsyncIterator[Any]]:
    async def requests(messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for message in messages:
            yield read(message)

    return requests


class InterceptorChain(grpc.aio.ServerInterceptor):
    """All interceptors as one grpc interceptor, outermost first."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._screens = [
            (position, interceptor)
            for position, interceptor in enumerate(interceptors)
            if type(interceptor).screen is not Interceptor.screen
        ]
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}  # by method: a handler and its wrapped form

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Returns the wrapped handler. For an unknown method it returns None, which grpc handles."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        return self.refusal(method, handler_call_details.invocation_metadata or ()) or self.wrapped(method, handler)

    def refusal(self, method: str, metadata: Metadata) -> Handler | None:
        """A handler that fails the call, if an interceptor refuses it before its request is read."""
        for position, interceptor in self._screens:
            if not method.startswith(interceptor.exempt):
                try:
                    interceptor.screen(method, metadata)
                except Exception as error:
                    return _within(self._interceptors[:position], _refusing(error), method)
        return None

    def wrapped(self, method: str, handler: Handler) -> Handler:
        """The handler, wrapped in all interceptors."""
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = handler, _within(self._interceptors, handler, method)
        return known[1]


def _within(interceptors: Sequence[Interceptor], handler: Handler, method: str) -> Handler:
    """The handler, wrapped in the interceptors, outermost first."""
    for interceptor in reversed(interceptors):
        handler = interceptor.wrap(handler, method)
    return _writing(handler)


def _refusing(error: Exception) -> Handler:
    """Fails the call. grpc reads the request of a unary call before the handler runs, that of a stream on demand."""

    async def refuse(requests: object, context: Context) -> None:
        nonlocal error
        try:
            raise error
        finally:
            del error  # its traceback refers to this function

    refusing: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return refusing


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
