"""Refused calls are counted, and logged without filling the log."""

import asyncio
import logging
from functools import partial
from typing import Any

import grpc
import pytest

from services.runtime.errors import ReplicaFull
from services.runtime.interceptors import telemetry as interceptor
from services.runtime.telemetry.names import Refusal
from services.runtime.telemetry.refusals import Refusals
from services.runtime.telemetry.setup import Telemetry
from tests.support.scripted import Scripted
from tests.support.serving import failure, serving
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "winnow.refusals")


async def test_the_first_is_logged_at_once_and_the_others_are_summed_up(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(Telemetry(), again_s=0.05)
    for _ in range(80):
        refusals.add(Refusal.OVERLOADED)
    refusals.add(Refusal.NOT_READY)
    assert caplog.messages == ["refused 1 call: overloaded", "refused 1 call: not_ready"]
    await until(lambda: len(caplog.messages) == 3)
    assert caplog.messages[2] == "refused 79 calls: overloaded"
    # After a while without any, the next one is a first again.
    await until(lambda: not refusals._timers)
    refusals.add(Refusal.OVERLOADED)
    assert caplog.messages[3:] == ["refused 1 call: overloaded"]


async def test_what_is_not_yet_logged_is_logged_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry()
    refusals = Refusals(telemetry, again_s=3600)
    for _ in range(5):
        refusals.add(Refusal.REPLICA_FULL)
    await asyncio.to_thread(telemetry.shutdown)
    assert caplog.messages == ["refused 1 call: replica_full", "refused 4 calls: replica_full"]


async def test_calls_that_a_server_refuses_leave_a_line_without_their_texts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine, all calls come before the sum is due.
    monkeypatch.setattr(interceptor, "Refusals", partial(Refusals, again_s=3600))

    async def full(request: embed_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        raise ReplicaFull(1.0)

    async with serving(Scripted(full)) as served:
        stub = embed_pb2_grpc.EmbedServiceStub(served.channel)
        for _ in range(80):
            error = await failure(stub.Embed(embed_pb2.EmbedRequest(texts=["SECRET"]), timeout=30))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert caplog.messages == ["refused 1 call: replica_full"]
    assert "SECRET" not in caplog.text
