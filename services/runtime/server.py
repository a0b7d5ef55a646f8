"""From settings and an application to a serving process, and back to nothing without losing an accepted call.

The port is bound before the application has loaded, with health NOT_SERVING and calls refused, so that probes and
balancers see the truth from the first moment.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.runtime.bearer_tokens import BearerTokens
from services.runtime.grpc_workarounds import use_generic_handlers
from services.runtime.interceptors import (
    AuthInterceptor,
    DeadlineInterceptor,
    DecodingInterceptor,
    ErrorsInterceptor,
    InterceptorChain,
    ReadinessInterceptor,
    TelemetryInterceptor,
)
from services.runtime.lifecycle import Lifecycle, Phase
from services.runtime.settings import ProcessSettings
from services.runtime.telemetry.logs import announcements
from services.runtime.telemetry.setup import Telemetry
from services.runtime.tls import server_credentials

log = logging.getLogger("winnow.server")

_LAST_WORDS_SECONDS = 0.5  # for statuses that are on their way out

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Application(Protocol):
    """What a process serves. The methods are awaited in this order, each once; `register` comes first."""

    @property
    def services(self) -> Sequence[str]:
        """Full names of its proto services: they are its health names, and what reflection lists."""

    def register(self, server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        """Adds its servicers. No call reaches them before `start` is done."""

    async def start(self) -> None:
        """Loads and warms up; calls are let in when it returns. An exception ends the process."""

    async def drain(self) -> None:
        """Finishes what goes on behind the calls, which have ended. Cancelled when the time for it is over."""

    async def close(self) -> None:
        """Frees everything; also after a `start` that failed or was cancelled."""


def build(settings: ProcessSettings, telemetry: Telemetry, lifecycle: Lifecycle) -> grpc.aio.Server:
    """A server with interceptors, limits, health and reflection; not yet bound."""
    tokens = [AuthInterceptor(BearerTokens(settings.auth_tokens_file))] if settings.auth_tokens_file else []
    chain = [
        ErrorsInterceptor(),
        TelemetryInterceptor(telemetry),
        *tokens,
        ReadinessInterceptor(lifecycle),
        DeadlineInterceptor(),
        DecodingInterceptor(settings.max_message_bytes),
    ]
    server = grpc.aio.server(
        interceptors=[InterceptorChain(chain)],
        options=_options(settings),
    )
    use_generic_handlers(server)
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, server)
    if settings.reflection:
        reflection.enable_server_reflection((*lifecycle.services, _HEALTH, reflection.SERVICE_NAME), server)
    return server


def bind(server: grpc.aio.Server, settings: ProcessSettings) -> str:
    """Binds the listen address; returns HOST:PORT with the port that was chosen. RuntimeError where it is taken."""
    host = settings.listen.rpartition(":")[0]
    if settings.tls_cert is None or settings.tls_key is None:
        port = server.add_insecure_port(settings.listen)
    else:
        credentials = server_credentials(settings.tls_cert, settings.tls_key, settings.tls_ca)
        port = server.add_secure_port(settings.listen, credentials)
    return f"{host}:{port}"


async def serve(settings: ProcessSettings, application: Application, telemetry: Telemetry) -> int:
    """Serves until SIGTERM or SIGINT; returns the process's exit status.

    0 after an orderly end; 1 where it could not listen, or the application failed to start or broke.
    """
    lifecycle = Lifecycle(application.services)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.stop)
    await lifecycle.announce()
    try:
        server = build(settings, telemetry, lifecycle)
        application.register(server, lifecycle)
        address = bind(server, settings)
        probes = await _probe_server(settings, lifecycle)
    except (OSError, RuntimeError, ValueError) as error:  # a port that is taken, a file that cannot be read
        log.error("cannot listen: %s", error)
        return 1
    await server.start()
    announcements.info("listening on %s", address, extra={"address": address})
    if telemetry.metrics_address:
        announcements.info("metrics on %s", telemetry.metrics_address, extra={"address": telemetry.metrics_address})
    try:
        await _start(application, lifecycle)
        await lifecycle.stopping.wait()
        await lifecycle.announce()
        await _drain(settings.drain_seconds, application, lifecycle, server)
    finally:
        await server.stop(0)
        if probes is not None:
            await probes.stop(0)
        await application.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 1 if lifecycle.phase is Phase.BROKEN else 0


async def _start(application: Application, lifecycle: Lifecycle) -> None:
    """Runs `application.start`, or gives up on it when the process is told to stop meanwhile."""
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
        gc.freeze()  # what the start has made stays: no later collection need walk through it
        await lifecycle.ready()
        if lifecycle.phase is Phase.SERVING:
            announcements.info("serving %s", ", ".join(lifecycle.services))


async def _drain(seconds: float, application: Application, lifecycle: Lifecycle, server: grpc.aio.Server) -> None:
    announcements.info("stopping: %s", lifecycle.phase.value)
    if lifecycle.phase is not Phase.BROKEN:
        try:
            async with asyncio.timeout(seconds):
                await lifecycle.idle()
                await application.drain()
        except TimeoutError:
            log.warning("not everything that was accepted could be finished within %g s", seconds)
    lifecycle.health.close()
    await server.stop(_LAST_WORDS_SECONDS)


async def _probe_server(settings: ProcessSettings, lifecycle: Lifecycle) -> grpc.aio.Server | None:
    """A plaintext server with the health service alone: Kubernetes' probes speak no TLS."""
    if settings.health_listen is None:
        return None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, server)
    port = server.add_insecure_port(settings.health_listen)
    await server.start()
    address = f"{settings.health_listen.rpartition(':')[0]}:{port}"
    announcements.info("health on %s", address, extra={"address": address})
    return server


def _options(settings: ProcessSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.so_reuseport", 0),  # with 1 a second process would share the port in silence
        # Twice the limit: what is a little over it is refused by name (DecodingInterceptor), not cut off by grpc.
        ("grpc.max_receive_message_length", min(2 * settings.max_message_bytes, 2**31 - 1)),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # below our clients' 20 s, or they get GOAWAY
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if settings.connection_age_seconds > 0:
        options.append(("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)))
    return options
