"""Serves an application over gRPC, from the start of a process to its orderly end.

The port is bound before the application has loaded. Until then health is NOT_SERVING and calls are refused, so that
probes and load balancers see the true state. On SIGTERM, accepted calls are finished.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.bearer_tokens import BearerTokens
from services.runtime.grpc_workarounds import use_generic_handlers
from services.runtime.interceptors import (
    AuthInterceptor,
    CallsInterceptor,
    DeadlineInterceptor,
    DecodingInterceptor,
    ErrorsInterceptor,
    Interceptor,
    InterceptorChain,
    ReadinessInterceptor,
    TelemetryInterceptor,
)
from services.runtime.lifecycle import Lifecycle, Phase
from services.runtime.local_calls import LocalCalls
from services.runtime.settings import ProcessSettings
from services.runtime.telemetry.logs import announcements
from services.runtime.telemetry.setup import Telemetry
from services.runtime.tls import server_credentials

log = logging.getLogger("winnow.server")

_MAX_STREAMS = 2000
_MAX_CONNECTIONS = 10_000
_STOP_SECONDS = 0.5  # for statuses that are still being sent
# Without another call, after which none is taken to have arrived unread; and the longest wait for that.
_QUIET_SECONDS, _MOST_SECONDS = 0.1, 2.0

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Application(Protocol):
    """What a process serves. The methods are called in this order, each once."""

    @property
    def services(self) -> Sequence[str]:
        """Full names of its proto services, used for health and reflection."""

    @property
    def interceptors(self) -> Sequence[Interceptor]:
        """Interceptors of its own, which know the caller."""

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        """Adds its servicers. No call reaches them before `start` has returned."""

    async def start(self) -> None:
        """Loads and warms up. Calls are accepted when it returns. An exception ends the process."""

    async def drain(self) -> None:
        """Finishes background work after all calls have ended. Cancelled after the drain time."""

    async def close(self) -> None:
        """Releases all resources, also if `start` failed or was cancelled."""


class Front(Protocol):
    """Serves the methods of the application over another protocol."""

    def bind(self) -> str:
        """Binds its address and returns it with the actual port. Raises OSError or ValueError."""

    async def start(self) -> None:
        """Begins to accept requests."""

    async def stop(self, grace: float) -> None:
        """Stops to accept, and ends the connections, within `grace` seconds those with a response in progress."""


MakeFront: TypeAlias = Callable[[LocalCalls, Lifecycle], Front]


def build(
    settings: ProcessSettings, telemetry: Telemetry, lifecycle: Lifecycle, own: Sequence[Interceptor] = ()
) -> tuple[grpc.aio.Server, LocalCalls]:
    """A server with interceptors, those of the application being `own`, limits, health and reflection.

    It is not bound yet. The local calls reach the servicers that the application adds to it.
    """
    tokens = BearerTokens(settings.auth_tokens_file) if settings.auth_tokens_file else None
    certificates, passed_names = settings.tls_ca is not None, settings.passed_names
    chain = [
        ErrorsInterceptor(),
        TelemetryInterceptor(telemetry),
        AuthInterceptor(tokens, certificates=certificates, passed_names=passed_names),
        *own,
        CallsInterceptor(settings.max_calls),
        ReadinessInterceptor(lifecycle),
        DeadlineInterceptor(),
        DecodingInterceptor(settings.max_message_bytes, settings.max_items),
    ]
    interceptors = InterceptorChain(chain)
    server = grpc.aio.server(interceptors=[interceptors], options=_options(settings))
    use_generic_handlers(server)
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, server)
    if settings.reflection:
        reflection.enable_server_reflection((*lifecycle.services, _HEALTH, reflection.SERVICE_NAME), server)
    local = LocalCalls(interceptors)
    local.follow(server)
    return server, local


def bind(server: grpc.aio.Server, settings: ProcessSettings) -> str:
    """Binds the listen address and returns HOST:PORT with the actual port. Raises RuntimeError if it is in use."""
    host = settings.listen.rpartition(":")[0]
    if settings.tls_cert is None or settings.tls_key is None:
        port = server.add_insecure_port(settings.listen)
    else:
        credentials = server_credentials(settings.tls_cert, settings.tls_key, settings.tls_ca)
        port = server.add_secure_port(settings.listen, credentials)
    return f"{host}:{port}"


async def serve(
    settings: ProcessSettings, application: Application, telemetry: Telemetry, make_front: MakeFront | None = None
) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit status of the process.

    0: an orderly end. 1: it could not listen, or the application failed to start or broke.
    """
    lifecycle = Lifecycle(application.services)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.stop)
    await lifecycle.announce()
    try:
        server, local = build(settings, telemetry, lifecycle, application.interceptors)
        application.register(server, lifecycle)
        address = bind(server, settings)
        front = make_front(local, lifecycle) if make_front else None
        front_address = front.bind() if front else ""
        probes = await _probe_server(settings, lifecycle)
    except (OSError, RuntimeError, ValueError) as error:  # the port is in use, or a file cannot be read
        log.error("cannot listen: %s", error)
        return 1
    await server.start()
    announcements.info("listening on %s", address, extra={"address": address})
    if front is not None:
        await front.start()
        announcements.info("http on %s", front_address, extra={"address": front_address})
    if telemetry.metrics_address:
        announcements.info("metrics on %s", telemetry.metrics_address, extra={"address": telemetry.metrics_address})
    try:
        await _start(application, lifecycle)
        await lifecycle.stopping.wait()
        await lifecycle.announce()
        await _drain(settings.drain_seconds, application, lifecycle, server, front)
    finally:
        if front is not None:
            await front.stop(0)
        await server.stop(0)
        if probes is not None:
            await probes.stop(0)
        await application.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 1 if lifecycle.phase is Phase.BROKEN else 0


async def _start(application: Application, lifecycle: Lifecycle) -> None:
    """Runs `application.start`, and cancels it if the process receives a signal meanwhile."""
    starting = asyncio.create_task(application.start())
    stopping = asyncio.create_task(lifecycle.stopping.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
    elif error := starting.exception():
        log.error("the start failed: %s", error, exc_info=error if log.isEnabledFor(logging.DEBUG) else None)
        lifecycle.fail()
    else:
        gc.collect()
        gc.freeze()  # objects created at the start live on: later collections can skip them
        await lifecycle.ready()
        if lifecycle.phase is Phase.SERVING:
            announcements.info("serving %s", ", ".join(lifecycle.services))


async def _drain(
    seconds: float, application: Application, lifecycle: Lifecycle, server: grpc.aio.Server, front: Front | None
) -> None:
    announcements.info("stopping: %s", lifecycle.phase.value)
    if lifecycle.phase is not Phase.BROKEN:
        try:
            async with asyncio.timeout(seconds):
                await lifecycle.idle()
                await application.drain()
        except TimeoutError:
            log.warning("accepted calls could not be finished within %g s", seconds)
        await _refuse_the_rest(lifecycle)
    lifecycle.health.close()
    if front is not None:
        await front.stop(_STOP_SECONDS)
    await server.stop(_STOP_SECONDS)


async def _refuse_the_rest(lifecycle: Lifecycle) -> None:
    """Returns when no more calls come in to be refused. Server.stop cancels those that it has not taken yet, without a
    word: some hundred, if the process had no processor time to take them."""
    loop = asyncio.get_running_loop()
    until, seen = loop.time() + _MOST_SECONDS, -1
    while seen != lifecycle.refused and loop.time() < until:
        seen = lifecycle.refused
        await asyncio.sleep(_QUIET_SECONDS)


async def _probe_server(settings: ProcessSettings, lifecycle: Lifecycle) -> grpc.aio.Server | None:
    """A plaintext server with only the health service, because Kubernetes' probes do not support TLS."""
    if settings.health_listen is None:
        return None
    chain = InterceptorChain(
        [
            ErrorsInterceptor(),
            CallsInterceptor(settings.max_calls),
            DecodingInterceptor(settings.max_message_bytes, settings.max_items),
        ]
    )
    server = grpc.aio.server(interceptors=[chain], options=_options(settings))
    use_generic_handlers(server)
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, server)
    port = server.add_insecure_port(settings.health_listen)
    await server.start()
    address = f"{settings.health_listen.rpartition(':')[0]}:{port}"
    announcements.info("health on %s", address, extra={"address": address})
    return server


def _options(settings: ProcessSettings) -> list[tuple[str, int]]:
    options = [
        # Calls that wait to be taken. Over 1,000 (by itself) grpc cancels them without a word; admission is for the
        # engine and the gateway, which say what to do.
        ("grpc.server.max_pending_requests", 1 << 20),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
        ("grpc.so_reuseport", 0),  # with 1, a second process would share the port silently
        # One client's share of `max_calls`. Its other calls wait on its side until a stream ends.
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", _max_connections()),  # one more is closed
        ("grpc.server_handshake_timeout_ms", 10_000),
        # DecodingInterceptor does it within its limit. grpc has none; it refuses other algorithms as UNIMPLEMENTED.
        ("grpc.per_message_decompression", 0),
        (
            "grpc.compression_enabled_algorithms_bitset",
            1 << grpc.Compression.NoCompression | 1 << grpc.Compression.Gzip,
        ),
        # Twice the limit, so that DecodingInterceptor can refuse messages slightly over it with a helpful error.
        ("grpc.max_receive_message_length", min(2 * settings.max_message_bytes, 2**31 - 1)),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # less than our clients' 2 s, to avoid GOAWAY
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if settings.connection_age_seconds > 0:
        options.append(("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)))
    return options


def _max_connections() -> int:
    """Half of the descriptors at most: the rest is for workers, Redis and files."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, descriptors // 2)
