"""Channels to other servers of this system: balanced, health-checked, retried within a budget, traced."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.runtime.reloading_channel import ReloadingChannel
from services.runtime.reloading_files import ReloadingFiles
from services.runtime.telemetry.client import ClientTelemetry
from services.runtime.telemetry.setup import Telemetry
from services.runtime.tls import channel_credentials, pem


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How to reach a pool of servers."""

    max_message_bytes: int = 64 << 20
    tls: bool = False
    tls_ca: Path | None = None
    """Verifies the server; None: the system's CAs."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = None
    """Bearer token sent with every call."""
    attempts: int = 3
    """Most attempts of one call, 1 to 5; only UNAVAILABLE is retried, on another connection if there is one."""


def service_config(health_service: str | None, attempts: int) -> dict[str, Any]:
    """The channel's service config: round_robin over every address, retries within a budget, health by name."""
    method: dict[str, Any] = {"name": [{}]}
    if attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": attempts,
            "initialBackoff": "0.02s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    config: dict[str, Any] = {
        "loadBalancingConfig": [{"round_robin": {}}],  # the default, pick_first, sends everything to one replica
        "methodConfig": [method],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return config


def channel(
    target: str,
    telemetry: Telemetry,
    settings: ChannelSettings | None = None,
    *,
    health_service: str | None = None,
) -> grpc.aio.Channel:
    """A channel to all addresses of `target`, any gRPC target ("dns:///winnow-embed:50051").

    Certificates are read again when their files change. With `health_service` (the proto service's full name) a replica
    gets calls only while its health says SERVING.
    OSError if a TLS file cannot be read, ValueError if it is malformed.
    """
    settings = settings or ChannelSettings()
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(service_config(health_service, settings.attempts))),
        ("grpc.enable_http_proxy", 0),  # http_proxy is for the internet, not for our own servers
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Calls over this size are not retried; grpc's default is a mere 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", settings.max_message_bytes),
        # A process that is stopped, and a network that swallows packets, leave a connection up. Its calls fail with
        # UNAVAILABLE when a ping is not answered, and are retried on another replica.
        ("grpc.keepalive_time_ms", 2_000),
        ("grpc.keepalive_timeout_ms", 2_000),
        # No keepalive ping is sent while one that measures bandwidth waits for its answer: by itself, for a minute.
        ("grpc.http2.ping_timeout_ms", 2_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name, the time-out of one attempt to connect
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    metadata = [("authorization", f"Bearer {settings.token}")] if settings.token else []
    interceptors = ClientTelemetry(telemetry, target, metadata).interceptors()
    if not settings.tls:
        return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
    names = ("tls_ca", "tls_cert", "tls_key")
    paths = {name: path for name in names if (path := getattr(settings, name)) is not None}

    def secure(contents: tuple[bytes, ...]) -> grpc.aio.Channel:
        credentials = channel_credentials(**dict(zip(paths, contents, strict=True)))
        return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)

    if not paths:
        return secure(())
    check = pem(settings.tls_cert, settings.tls_key, settings.tls_ca)
    return ReloadingChannel(ReloadingFiles(*paths.values(), check=check), secure)
