"""The replicas of a pool: a channel to each address of the target, which is looked up again every few seconds.

A name's addresses are all its A and AAAA records. A look-up that fails changes nothing. The channel to an address that
is gone is closed when the calls on it have ended. A target that is no name, such as a Unix socket, is one replica, and
so is a target in a form that only gRPC knows, with all that gRPC finds behind it.
"""

import asyncio
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc

from gateway.models.balance import Connection, Load, Rank, newcomer
from services.runtime.telemetry.names import ReplicaState

log = logging.getLogger("winnow.workers")

_LOOK_UP_EVERY_S = 3.0
# After a failed call the addresses are looked up at once, but no more often than this.
_LOOK_UP_PAUSE_S = 1.0
_LOOK_UP_TIMEOUT_S = 5.0
_NAMED = re.compile(r"(?:dns:(?:///)?)?(?P<host>[^/:\[\],]+):(?P<port>\d+)")
_STATES = {
    grpc.ChannelConnectivity.READY: Connection.READY,
    grpc.ChannelConnectivity.IDLE: Connection.CONNECTING,
    grpc.ChannelConnectivity.CONNECTING: Connection.CONNECTING,
}

S = TypeVar("S")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to gRPC targets, one for each address. OSError or ValueError if there are none."""


class Connect(Protocol):
    """Opens channels."""

    def __call__(self, target: str, authority: str | None) -> grpc.aio.Channel:
        """A channel to one target. `authority`: HOST:PORT that the server is known by, if `target` is an address."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """All addresses of a name, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(_address(family, address[0], port) for family, _, _, _, address in found))


def _address(family: int, host: str | int, port: int) -> str:
    return f"ipv6:[{host}]:{port}".replace("%", "%25") if family == socket.AF_INET6 else f"ipv4:{host}:{port}"


@dataclass(frozen=True, slots=True)
class Name:
    """A name that stands for the addresses of all replicas."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """What the servers' certificates are made out to."""
        return f"{self.host}:{self.port}"


def parse(target: str) -> Name | Sequence[str]:
    """The name in a target, or the targets of its replicas if it has none. localhost is this machine, and no pool."""
    for scheme in ("ipv4:", "ipv6:"):
        if target.startswith(scheme):
            return [scheme + address for address in target.removeprefix(scheme).split(",")]
    named = _NAMED.fullmatch(target)
    if named is None or named["host"] == "localhost" or _is_address(named["host"]):
        return [target]
    return Name(named["host"], int(named["port"]))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Replica(Generic[S]):
    """One replica: its channel, the stub on it, and its load."""

    def __init__(self, target: str, channel: grpc.aio.Channel, stub: S, load: Load) -> None:
        self.target, self.stub, self.load = target, stub, load
        self._channel = channel

    def look(self) -> None:
        """Reads the state of the connection. Connects if there is none."""
        self.load.connection = _STATES.get(self._channel.get_state(try_to_connect=True), Connection.FAILING)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class Replicas(Generic[S]):
    """The replicas behind `target`; `what` is their name in messages, `stub` makes a stub on a channel."""

    def __init__(
        self, what: str, target: str, connect: Connect, stub: Callable[[Any], S], resolve: Resolve = resolve
    ) -> None:
        self._what, self._connect, self._stub, self._resolve = what, connect, stub, resolve
        self.current: list[Replica[S]] = []
        """Never empty once the name has been found."""
        self._leaving: list[Replica[S]] = []
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._found = True
        self._clock = asyncio.get_running_loop().time
        parsed = parse(target)
        self._name = parsed if isinstance(parsed, Name) else None
        if not isinstance(parsed, Name):
            self._update(parsed)

    async def available(self, deadline: float) -> Sequence[Replica[S]]:
        """The present replicas. Empty if the name has never been found, and is not found now before `deadline`."""
        if not self.current:
            await asyncio.wait({self._look_up()}, timeout=max(0.0, deadline - self._clock()))
        return self.current

    @property
    def connected(self) -> Sequence[Replica[S]]:
        """All that may have calls in flight, also those that are leaving."""
        return [*self.current, *self._leaving]

    def states(self) -> dict[ReplicaState, int]:
        """How many of the present replicas are in each state."""
        now = self._clock()
        ranks = [replica.load.rank(now) for replica in self.current]
        return {ReplicaState[rank.name]: ranks.count(rank) for rank in Rank}

    def suspect(self) -> None:
        """A call has failed: perhaps the addresses have changed."""
        if self._clock() - self._looked_at >= _LOOK_UP_PAUSE_S:
            self._look_up()

    async def watch(self) -> None:
        """Follows the name's addresses for as long as this task lives."""
        while True:
            await self._look_up()
            for replica in [replica for replica in self._leaving if not replica.load.unanswered]:
                self._leaving.remove(replica)
                await replica.close()
            await asyncio.sleep(_LOOK_UP_EVERY_S)

    async def close(self) -> None:
        """Closes all channels."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self.connected))

    def _look_up(self) -> "asyncio.Task[None]":
        """The look-up in progress, or a new one."""
        if self._looking is None or self._looking.done():
            self._looked_at = self._clock()
            self._looking = asyncio.create_task(self._renew(), name="look-up")
        return self._looking

    async def _renew(self) -> None:
        if self._name is None:
            return
        try:
            async with asyncio.timeout(_LOOK_UP_TIMEOUT_S):
                targets = await self._resolve(self._name.host, self._name.port)
        except (OSError, ValueError, TimeoutError) as error:
            if self._found:
                log.warning("%s: %s cannot be resolved (%s)", self._what, self._name.host, type(error).__name__)
            self._found = False
            return
        self._found = True
        if targets:
            self._update(targets)

    def _update(self, targets: Sequence[str]) -> None:
        known = {replica.target: replica for replica in self.current}
        loads = [replica.load for replica in self.current]
        authority = self._name.authority if self._name else None
        kept = []
        for target in targets:
            replica = known.pop(target, None)
            if replica is None:
                channel = self._connect(target, authority)
                replica = Replica(target, channel, self._stub(channel), newcomer(loads, self._clock()))
            kept.append(replica)
        self._leaving += known.values()
        self.current = kept
