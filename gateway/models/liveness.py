"""Finds replicas that do not answer at all: a stopped process, a network that swallows packets.

A replica that has calls in flight and has answered nothing for a while is asked for its model, which a worker tells
from memory whatever its model computes. If it does not answer that either, it is silent: it gets no calls while there
are others, and its calls in flight are given up, so that they are sent to another one. It is asked until it answers.

Time is counted in ticks that came at their time: if this process itself was held up, the answers may be in its sockets.
HTTP/2's keepalive finds the same within seconds, but only the end of the connection; see `services.runtime.channel`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from gateway.models.balance import Rank
from gateway.models.replicas import Replica, Replicas
from services.runtime.errors import DeadlineTooShort, UpstreamUnavailable
from services.runtime.rpc_status import from_rpc_error

_TICK_S = 0.1
# Quiet ticks until a replica is asked, and then until it is called silent: a frozen one is found within a second.
_QUIET_TICKS = 3
_ASKED_TICKS = 5
_ASK_TIMEOUT_S = 5.0
# If there is no other replica, a call to a silent one has this long: on a machine that is short of processors a worker
# may pause for seconds, and HTTP/2's keepalive finds a process that is stopped before that.
_PATIENCE_S = 10.0

S = TypeVar("S")


@dataclass(slots=True)
class _Seen:
    """How many answers a replica had given at the last tick, and for how many ticks it has given none."""

    answers: int = 0
    quiet: int = 0
    asking: "asyncio.Task[None] | None" = None
    asked: int = 0


class Liveness(Generic[S]):
    """Watches the replicas. `ask(stub, timeout_s, wait)` requests what a worker tells from memory."""

    def __init__(self, replicas: Replicas[S], ask: Callable[[S, float, bool], Awaitable[object]]) -> None:
        self._replicas, self._ask = replicas, ask
        self._seen: dict[Replica[S], _Seen] = {}

    async def watch(self) -> None:
        """Looks at all replicas ten times a second, for as long as this task lives."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                self.tick(began)
                await asyncio.sleep(_TICK_S)
                while loop.time() - began > 2 * _TICK_S:  # held up: what has arrived is handled first
                    began = loop.time()
                    await asyncio.sleep(_TICK_S)
        finally:
            for seen in self._seen.values():
                if seen.asking is not None:
                    seen.asking.cancel()

    def tick(self, now: float) -> None:
        """Looks once."""
        connected = self._replicas.connected
        self._seen = {replica: self._seen.get(replica) or _Seen() for replica in connected}
        for replica, seen in self._seen.items():
            replica.look()
            self._judge(replica, seen)
        others = any(replica.load.rank(now) <= Rank.PAUSED for replica in self._replicas.current)
        for replica in connected:
            if replica.load.silent:
                for sent in list(replica.load.unanswered):
                    if others or now - sent.at >= _PATIENCE_S:
                        sent.give_up()

    def _judge(self, replica: Replica[S], seen: _Seen) -> None:
        load = replica.load
        if load.answers != seen.answers:
            seen.answers, seen.quiet = load.answers, 0
        elif load.oldest is not None:  # calls that were cancelled meanwhile, for a hedge has won, are no answers
            seen.quiet += 1
        if seen.asking is not None and not seen.asking.done():
            seen.asked += 1
            load.silent = load.silent or seen.asked >= _ASKED_TICKS
        elif load.silent or seen.quiet >= _QUIET_TICKS:
            seen.asking, seen.asked, seen.quiet = asyncio.create_task(self._asking(replica)), 0, 0

    async def _asking(self, replica: Replica[S]) -> None:
        """Ends when the replica has answered, or its connection has failed.

        A failed connection is no silence: its calls have failed as well, or they are the last ones of a replica that
        is shutting down. But what is silent stays so until it answers.
        """
        try:
            await self._ask(replica.stub, _ASK_TIMEOUT_S, replica.load.silent)
        except grpc.aio.AioRpcError as error:
            if isinstance(from_rpc_error(error), (UpstreamUnavailable, DeadlineTooShort)):
                return
        replica.load.heard()
