"""Records one client span and one duration per outbound call, and propagates trace and caller."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.runtime import callers
from services.runtime.grpc_workarounds import Continuation, client_interceptors
from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry

log = logging.getLogger("winnow.client")


class _Outbound:
    """Span and duration of one call."""

    def __init__(self, telemetry: ClientTelemetry, details: grpc.aio.ClientCallDetails) -> None:
        method = details.method.decode() if isinstance(details.method, bytes) else str(details.method)
        self.method = method.lstrip("/")
        self._attributes = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: self.method}
        self._span = telemetry.tracer.start_span(
            self.method, kind=SpanKind.CLIENT, attributes={**self._attributes, **telemetry.server}
        )
        self._duration = telemetry.duration
        self._started = time.perf_counter()
        carrier = telemetry.propagation.inject(trace.set_span_in_context(self._span))
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in (*carrier.items(), *telemetry.metadata, *callers.passed_on()):
            metadata[key] = value
        self.details = grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )

    def end(self, code: grpc.StatusCode) -> None:
        self._attributes[names.RPC_STATUS] = code.name
        if code is not grpc.StatusCode.OK:  # on the client side, every other code is an error
            self._attributes[names.ERROR_TYPE] = code.name
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(self._attributes)
        self._duration.record(time.perf_counter() - self._started, self._attributes)
        self._span.end()


class ClientTelemetry:
    """The interceptors of one channel. `metadata`, such as a bearer token, is added to each call."""

    def __init__(self, telemetry: Telemetry, target: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self.tracer = telemetry.tracer
        self.duration = telemetry.histogram(names.CLIENT_DURATION)
        self.propagation = telemetry.propagation
        self.metadata = tuple(metadata)
        address = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:")
        host, _, port = address.rpartition(":")
        self.server: dict[str, str | int] = {names.SERVER_ADDRESS: host or port}
        if host and port.isdigit():
            self.server[names.SERVER_PORT] = int(port)
        self._open: set[asyncio.Task[None]] = set()

    def interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """One interceptor per call kind."""
        return client_interceptors(self.unary, self.stream)

    async def unary(self, continuation: Continuation, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        """A call with one response. It ends when this method returns or is cancelled.

        A call that cannot start, for example because gRPC refuses its metadata, fails with INTERNAL immediately.
        """
        outbound = _Outbound(self, details)
        code, call = grpc.StatusCode.CANCELLED, None
        try:
            call = await continuation(outbound.details, request)
            await call  # `code()` would block forever on a call that could not start: it never gets a status
            code = grpc.StatusCode.OK
            return call
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if call is None:
                raise
            return call
        except asyncio.CancelledError:
            if call is not None:
                call.cancel()  # grpc cancels only this interceptor; the server would continue to work
            raise
        except Exception as error:
            code = grpc.StatusCode.INTERNAL
            log.error("a call of %s could not start: %s", outbound.method, _reason(error))
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, nothing, nothing, "The call could not start.") from error
        finally:
            outbound.end(code)

    async def stream(self, continuation: Continuation, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        """A call with a stream of requests or responses. It ends when its status arrives."""
        outbound = _Outbound(self, details)
        try:
            call = await continuation(outbound.details, request)
        except BaseException:
            outbound.end(grpc.StatusCode.CANCELLED)
            raise

        async def ended() -> None:
            outbound.end(await call.code())

        task = asyncio.create_task(ended())
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return call


def _reason(error: Exception) -> str:
    """Why a call could not start. Only gRPC's own errors are quoted: others might contain metadata or messages."""
    return str(error) if isinstance(error, grpc.aio.InternalError) else type(error).__qualname__
