"""A silent server is noticed while calls wait, all of them hear it together, and its first answer ends it."""

import asyncio

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.redis.silence import Silence
from tests.support.waiting import until


class Server:
    """Answers PING while `talks` is set."""

    def __init__(self) -> None:
        self.talks = asyncio.Event()
        self.pings = 0
        self.error: Exception | None = None

    async def ping(self) -> None:
        self.pings += 1
        if self.error:
            raise self.error
        await self.talks.wait()


async def test_it_is_asked_while_a_call_waits_and_not_otherwise() -> None:
    server = Server()
    server.talks.set()
    silence = Silence(server.ping)
    silence.began("slow command")
    await until(lambda: server.pings == 3)
    assert not silence.failure.done()
    silence.ended("slow command")
    assert silence._watch_task is not None
    await silence._watch_task
    assert server.pings == 3


async def test_a_server_that_does_not_answer_is_silent_until_it_does() -> None:
    server = Server()
    silence = Silence(server.ping)
    silence.began("call")
    assert isinstance(await silence.failure, RedisTimeoutError)
    silence.ended("call")
    asked = server.pings
    await until(lambda: server.pings > asked)  # also if nobody waits
    server.talks.set()
    await until(lambda: not silence.failure.done())


async def test_replies_to_other_calls_are_signs_of_life() -> None:
    server = Server()
    silence = Silence(server.ping)
    silence.began("call")
    watch = silence._watch_task
    assert watch is not None
    end = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < end:
        silence.heard()
        await asyncio.sleep(0)
    assert not server.pings
    silence.close()


async def test_a_call_that_timed_out_without_any_reply_needs_no_question() -> None:
    server = Server()
    silence = Silence(server.ping)
    silence.began("call")
    error = RedisTimeoutError("no answer")
    silence.ended("call", error)
    assert silence.failure.result() is error
    server.talks.set()
    await until(lambda: not silence.failure.done())


async def test_a_timeout_beside_replies_is_its_own_affair() -> None:
    silence = Silence(Server().ping)
    silence.began("slow command")
    await asyncio.sleep(0)
    silence.heard()
    silence.ended("slow command", RedisTimeoutError("no answer"))
    assert not silence.failure.done()
    silence.close()


async def test_a_server_that_refuses_connections_is_not_silent() -> None:
    """Calls hear at once what is wrong with it."""
    server = Server()
    silence = Silence(server.ping)
    silence.began("call")
    await silence.failure
    server.error = RedisConnectionError("refused")
    await until(lambda: not silence.failure.done())
    asked = server.pings
    await asyncio.sleep(0)
    assert server.pings <= asked + 1  # not again and again
    silence.close()
