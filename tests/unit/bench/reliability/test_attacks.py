"""What a bare grpc server makes of each attack: those that begin as calls do reach it as calls."""

import random
from collections.abc import AsyncIterator

import grpc
import pytest

from bench.reliability import attacks
from tests.support.waiting import until

SERVICE, [PATH, *_] = next(iter(attacks.METHODS.items()))


class Recorder(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.paths: list[str] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        self.paths.append(handler_call_details.method)

        async def answer(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request

        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(answer)
        return handler


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, Recorder]]:
    recorder = Recorder()
    running = grpc.aio.server()
    running.add_generic_rpc_handlers([recorder])
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    yield f"127.0.0.1:{port}", recorder
    await running.stop(0)


async def test_noise_calls_every_method_and_tells_the_codes(server: tuple[str, Recorder]) -> None:
    address, recorder = server
    ends = await attacks.noise(address, [SERVICE], 60, random.Random(1))
    assert ends == {"OK": 60}
    assert set(recorder.paths) == set(attacks.METHODS[SERVICE])


async def test_calls_made_of_frames_are_calls(server: tuple[str, Recorder]) -> None:
    address, recorder = server
    assert await attacks.slow_readers(address, 3, PATH, 0.1) == {"held": 3}
    await until(lambda: recorder.paths == [PATH] * 3)
    ends = await attacks.bad_gzip(address, 2, PATH, random.Random(1))
    assert ends.total() == 1
    await until(lambda: recorder.paths == [PATH] * 5)


async def test_what_is_no_call_does_not_end_the_server(server: tuple[str, Recorder]) -> None:
    address, recorder = server
    chance = random.Random(1)
    assert (await attacks.garbage(address, 20, chance)).total() == 20
    assert (await attacks.frames(address, 20, chance)).total() == 20
    assert (await attacks.floods(address, 20)).total() == 3
    assert (await attacks.rapid_reset(address, 20, PATH)).total() == 1
    before = len(recorder.paths)
    assert await attacks.noise(address, [SERVICE], 1, chance) == {"OK": 1}
    assert len(recorder.paths) == before + 1


async def test_nobody_there_is_told() -> None:
    assert await attacks.garbage("127.0.0.1:1", 2, random.Random(1)) == {"refused": 2}
