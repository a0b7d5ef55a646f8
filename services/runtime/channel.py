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


class Connector:
    """Opens channels. Certificates are read now, and again when their files change.

    With `health_service` (the proto service's full name) a channel is ready only while the server's health says
    SERVING. OSError if a TLS file cannot be read, ValueError if it is malformed.
    """

    def __init__(self, telemetry: Telemetry, settings: ChannelSettings, health_service: str | None = None) -> None:
        self._telemetry, self._settings, self._health_service = telemetry, settings, health_service
        names = ("tls_ca", "tls_cert", "tls_key") if settings.tls else ()
        self._paths = {name: path for name in names if (path := getattr(settings, name)) is not None}
        self._files: ReloadingFiles | None = None
        if self._paths:
            check = pem(settings.tls_cert, settings.tls_key, settings.tls_ca)
            self._files = ReloadingFiles(*self._paths.values(), check=check)

    def __call__(self, target: str, authority: str | None = None) -> grpc.aio.Channel:
        """A channel to `target`, any gRPC target ("ipv4:10.0.0.1:50051").

        `authority` (HOST:PORT) is the server's name in its certificate, if it is not the target's.
        """
        options = self._options(authority)
        token = self._settings.token
        metadata = [("authorization", f"Bearer {token}")] if token else []
        interceptors = ClientTelemetry(self._telemetry, target, metadata).interceptors()
        if not self._settings.tls:
            return grpc.aio.insecure_channel(target, options, interceptors=interceptors)

        def secure(contents: tuple[bytes, ...]) -> grpc.aio.Channel:
            credentials = channel_credentials(**dict(zip(self._paths, contents, strict=True)))
            return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)

        return secure(()) if self._files is None else ReloadingChannel(self._files, secure)

    def _options(self, authority: str | None) -> list[tuple[str, Any]]:
        settings = self._settings
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", json.dumps(service_config(self._health_service))),
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
        return options


def channel(
    target: str,
    telemetry: Telemetry,
    settings: ChannelSettings | None = None,
    *,
    health_service: str | None = None,
) -> grpc.aio.Channel:
    """One channel; see `Connector`."""
    return Connector(telemetry, settings or ChannelSettings(), health_service)(target)
