"""Quotas in tokens: how fast a caller may use them, and how many it may have in flight, at this gateway.

What counts are the tokens that are computed for a caller; what a cache has is free. They are estimated before a call
and corrected by its usage after it. A call over the quota is refused, except in streams: their chunks wait for their
turn, in order, and flow control slows the sender.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from gateway.callers.policies import Policies, Policy
from gateway.callers.token_bucket import TokenBucket
from gateway.telemetry import GatewayMetrics
from services.runtime import callers
from services.runtime.callers import Caller
from services.runtime.errors import Problem, QuotaExceeded

Clock = Callable[[], float]

OTHER = "other"
"""The label of callers that no file lists: the number of labels must be bounded."""
_PACED: ContextVar[bool] = ContextVar("paced", default=False)
# Until something in flight has ended. Nobody knows when that is.
_IN_FLIGHT_RETRY_S = 1.0
# Maximum time of a stream's chunk without a look at the policy, which may have changed.
_LOOK_S = 1.0
# A stream accepts no more than its caller may use in this time, so that it can finish when the gateway stops.
_ACCEPTED_S = 10.0
# Accounts with nothing in them are dropped beyond this number: certificates may have any number of names.
_MAX_ACCOUNTS = 10_000


@dataclass(slots=True)
class Spending:
    """The tokens of one call: the estimate, until the call sets what it used."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Shortage:
    """A limit that is reached, and the seconds after which to try again."""

    limit: str
    retry_after_s: float


class Account:
    """What one caller has left, and what it has in flight."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.turn = asyncio.Lock()
        self.changed = asyncio.Event()
        self._policy = Policy()
        self._bucket: TokenBucket | None = None

    def apply(self, policy: Policy, now: float) -> None:
        """Makes the policy the current one."""
        if policy is self._policy:
            return
        self._policy = policy
        rate = policy.tokens_per_second
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(rate, policy.burst, now)
        else:
            self._bucket.adjust(rate, policy.burst, now)

    def shortage(self, tokens: int, now: float) -> Shortage | None:
        """Why so many tokens may not be used now. A call over the limit of those in flight may run alone."""
        most = self._policy.tokens_in_flight
        if most is not None and self.in_flight and self.in_flight + tokens > most:
            return Shortage(f"{most} tokens in flight", _IN_FLIGHT_RETRY_S)
        if self._bucket is not None and (wait_s := self._bucket.wait_s(tokens, now)) > 0:
            return Shortage(f"{self._policy.tokens_per_second:.12g} tokens per second", wait_s)
        return None

    def begin(self, tokens: int, now: float) -> None:
        """Takes the estimate of a call."""
        self.in_flight += tokens
        if self._bucket is not None:
            self._bucket.take(tokens, now)

    def end(self, estimated: int, used: int, now: float) -> None:
        """Replaces the estimate of a call by what it used."""
        self.in_flight -= estimated
        if self._bucket is not None:
            self._bucket.take(used - estimated, now)
        self.changed.set()

    def idle(self, now: float) -> bool:
        """Whether a new account would be the same."""
        return not self.in_flight and not self.turn.locked() and (self._bucket is None or self._bucket.full(now))


class Quotas:
    """The accounts of all callers of one gateway."""

    def __init__(self, policies: Policies, metrics: GatewayMetrics, clock: Clock = time.monotonic) -> None:
        self._policies, self._metrics, self._clock = policies, metrics, clock
        self._accounts: dict[str, Account] = {}

    @contextmanager
    def paced(self) -> Iterator[None]:
        """Within the `with` block, and in tasks that it starts, calls over the quota wait."""
        token = _PACED.set(True)
        try:
            yield
        finally:
            _PACED.reset(token)

    @asynccontextmanager
    async def spending(self, tokens: int) -> AsyncIterator[Spending]:
        """Around work of the current caller that is estimated to need `tokens`; the block sets how many it did.

        Raises QuotaExceeded, or waits. Work that fails with a Problem costs nothing; if it is cut off, the estimate.
        """
        caller, spending = callers.current(), Spending(tokens)
        account = await self._begin(caller.name, tokens)
        try:
            yield spending
        except Problem:
            spending.tokens = 0
            raise
        finally:
            account.end(tokens, spending.tokens, self._clock())
            self._metrics.caller_used(self.label(caller), spending.tokens)

    def window(self, most: int) -> int:
        """Estimated tokens in flight of one stream of the current caller: what it may have, and never over `most`."""
        policy = self._policies.of(callers.current().name)
        if policy.tokens_in_flight is not None:
            most = min(most, policy.tokens_in_flight)
        if policy.tokens_per_second is not None:
            most = min(most, math.ceil(_ACCEPTED_S * policy.tokens_per_second))
        return most

    def label(self, caller: Caller) -> str:
        """The caller's name if a file lists it."""
        return caller.name if caller.name and (caller.listed or self._policies.lists(caller.name)) else OTHER

    async def _begin(self, name: str, tokens: int) -> Account:
        """Takes the estimate from the caller's account, in its turn."""
        account = self._account(name)
        if not _PACED.get():
            if shortage := account.shortage(tokens, self._clock()):
                raise QuotaExceeded(name, shortage.limit, shortage.retry_after_s)
            account.begin(tokens, self._clock())
            return account
        async with account.turn:
            while shortage := account.shortage(tokens, self._clock()):
                account.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(shortage.retry_after_s, _LOOK_S)):
                        await account.changed.wait()
                self._apply(account, name)
            account.begin(tokens, self._clock())
        return account

    def _account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= _MAX_ACCOUNTS:
                now = self._clock()
                self._accounts = {each: kept for each, kept in self._accounts.items() if not kept.idle(now)}
            account = self._accounts[name] = Account()
        self._apply(account, name)
        return account

    def _apply(self, account: Account, name: str) -> None:
        account.apply(self._policies.of(name), self._clock())
