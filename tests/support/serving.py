"""Servers of this system within the test's own process: real gRPC over loopback, real interceptors."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pydantic_settings import SettingsConfigDict

from services.runtime.lifecycle import Lifecycle
from services.runtime.server import Application, MakeFront, bind, build
from services.runtime.settings import ProcessSettings
from services.runtime.telemetry.setup import Telemetry

M = TypeVar("M", bound=Message)


class PlainSettings(ProcessSettings):
    """Loopback, a free port, no metrics."""

    model_config = SettingsConfigDict(env_prefix="TEST_")

    listen: str = "127.0.0.1:0"
    metrics_listen: str | None = None


class WorkerLikeSettings(PlainSettings):
    """The same, and peers may name the caller that they work for."""

    passed_names = True


@dataclass
class Served:
    """A running server."""

    address: str
    lifecycle: Lifecycle
    channel: grpc.aio.Channel
    """Plain: no retries, no interceptors, 256 MiB messages."""
    http: str = field(default="", kw_only=True)
    """The address of the HTTP front, if it has one."""


@asynccontextmanager
async def serving(
    application: Application,
    settings: ProcessSettings | None = None,
    telemetry: Telemetry | None = None,
    *,
    start: bool = True,
    make_front: MakeFront | None = None,
) -> AsyncIterator[Served]:
    """Serves the application until the block ends. `start` False leaves it loading."""
    settings = settings or PlainSettings()
    lifecycle = Lifecycle(application.services)
    await lifecycle.announce()
    server, local = build(settings, telemetry or Telemetry(), lifecycle, application.interceptors)
    application.register(server, lifecycle)
    address = bind(server, settings)
    front = make_front(local, lifecycle) if make_front else None
    http = front.bind() if front else ""
    await server.start()
    if front is not None:
        await front.start()
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_send_message_length", 256 << 20),
        ("grpc.max_receive_message_length", 256 << 20),
    ]
    try:
        if start:
            await application.start()
            await lifecycle.ready()
        async with grpc.aio.insecure_channel(address, options) as channel:
            yield Served(address, lifecycle, channel, http=http)
    finally:
        lifecycle.stop()
        if front is not None:
            await front.stop(0)
        await server.stop(0)
        await application.close()


@dataclass
class RichStatus:
    """The status of a failed call with its details, as grpc's own library reads them."""

    code: grpc.StatusCode
    status: status_pb2.Status
    trailers: dict[str, str | bytes]

    def detail(self, kind: type[M]) -> M:
        return next(iter(details(self.status, kind)))

    @property
    def reason(self) -> str:
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info.domain == "winnow"
        return str(info.reason)

    @property
    def fields(self) -> list[str]:
        return [v.field for v in self.detail(error_details_pb2.BadRequest).field_violations]


def details(status: status_pb2.Status, kind: type[M]) -> list[M]:
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


class _Call:
    """What grpc_status asks of a synchronous call, over an AioRpcError."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.details = error.code, error.details
        self.trailing_metadata = lambda: tuple(error.trailing_metadata() or ())


def rich_status(error: grpc.aio.AioRpcError) -> RichStatus:
    """The rich status; fails where it is missing, or contradicts the plain one."""
    status = rpc_status.from_call(_Call(error))
    assert status is not None, f"no details: {error.code()} {error.details()}"
    return RichStatus(error.code(), status, dict(error.trailing_metadata() or ()))


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value
