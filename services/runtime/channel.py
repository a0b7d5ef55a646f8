"""Channels to other servers of this system: health-checked, traced, and down soon if the server does not answer.

A channel does not retry, except what was never processed; that is for those who know what may be sent twice.
"""

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


def service_config(health_service: str | None) -> dict[str, Any]:
    """The channel's service config. Of the policies that know health, round_robin is the plain one."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if health_service is not None:
        config["healthCheckConfig"] = {"serviceName": health_service}
    return config


def channel(
    target: str,
    telemetry: Telemetry,
    settings: ChannelSettings | None = None,
    *,
    health_service: str | None = None,
    authority: str | None = None,
) -> grpc.aio.Channel:
    """A channel to `target`, any gRPC target ("ipv4:10.0.0.1:50051").

    Certificates are read again when their files change. With `health_service` (the proto service's full name) the
    channel is ready only while the server's health says SERVING. With `authority` (HOST:PORT), that is the server's
    name in its certificate, whatever the target.
    OSError if a TLS file cannot be read, ValueError if it is malformed.
    """
    settings = settings or ChannelSettings()
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(service_config(health_service))),
        ("grpc.enable_http_proxy", 0),  # http_proxy is for the internet, not for our own servers
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # A process that is stopped, and a network that swallows packets, leave a connection up. Its calls fail with
        # UNAVAILABLE when a ping is not answered.
        ("grpc.keepalive_time_ms", 2_000),
        ("grpc.keepalive_timeout_ms", 2_000),
        # No keepalive ping is sent while one that measures bandwidth waits for its answer: by itself, for a minute.
        ("grpc.http2.ping_timeout_ms", 2_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name, the time-out of one attempt to connect
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    if authority is not None:
        options.append(("grpc.default_authority", authority))
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
