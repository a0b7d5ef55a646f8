"""The worker pools: one handle for each, over a channel that spreads calls over the replicas.

A pool remembers the models it has seen by fingerprint, so during a rollout, when two models answer by turns, each
answer is understood by its own. Workers may be down when the gateway starts: the model is asked for when needed.
"""

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from typing import Generic, Protocol, TypeVar

import grpc

from services.runtime.errors import (
    DeadlineTooShort,
    NotReady,
    PoolSaturated,
    Problem,
    ReplicaFull,
    UpstreamUnavailable,
)
from services.runtime.rpc_status import from_rpc_error, to_problem
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc
from winnow.rerank.v1 import rerank_pb2, rerank_pb2_grpc

# Taken off the caller's deadline for the way back, so that the worker gives up first and our answer still arrives.
_MARGIN_S = 0.005
_KNOWN_MODELS = 8
# Longest that a worker may take to name its model: it has it at hand.
_MODEL_TIMEOUT_S = 5.0
# Asking a pool in which two models answer by turns for one of them: how often until we give up.
_MODEL_TRIES = 8
# A model that answered this long before the latest answer of any model is no longer served.
_ROLLOUT_S = 30.0


class Model(Protocol):
    """What both GetModelResponses have."""

    @property
    def model(self) -> common_pb2.ModelIdentity:
        """Name, revision, fingerprint."""


log = logging.getLogger("winnow.workers")

M = TypeVar("M", bound=Model)
Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)


class Call(Protocol[Reply_co]):
    """A method of a stub, bound to its request."""

    def __call__(self, *, timeout: float) -> Awaitable[Reply_co]:
        """Sends it. `timeout`: seconds."""


class Pool(Generic[M]):
    """Workers of one kind; `what` is what messages call them."""

    def __init__(self, what: str, get_model: Call[M], timeout_s: float) -> None:
        self.what = what
        self._get_model = get_model
        self._timeout_s = timeout_s
        self._models: dict[str, M] = {}
        self._seen_at: dict[str, float] = {}
        self._current: M | None = None
        self._asking: asyncio.Task[M] | None = None

    async def model(self, deadline: float | None = None) -> M:
        """The model that answered last. UpstreamUnavailable where no worker ever answered."""
        if self._current is None:
            await self.refresh(deadline)
        assert self._current is not None
        return self._current

    async def serving(self, fingerprint: str, deadline: float | None = None) -> M | None:
        """The model of that fingerprint where the pool serves it, be it beside another one; None where it does not."""
        await self.model(deadline)
        if not self._serves(fingerprint):
            await self.refresh(deadline)
        return self._models[fingerprint] if self._serves(fingerprint) else None

    def _serves(self, fingerprint: str) -> bool:
        return fingerprint in self._models and self._seen_at[fingerprint] > max(self._seen_at.values()) - _ROLLOUT_S

    async def refresh(self, deadline: float | None = None) -> None:
        """Ask a worker for its model. All who come while one is asked wait for the same answer, or failure."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="get-model")
            self._asking.add_done_callback(self._asked)
        asking = self._asking
        left = None if deadline is None else deadline - asyncio.get_running_loop().time() - _MARGIN_S
        await asyncio.wait({asking}, timeout=left)
        if not asking.done():
            raise DeadlineTooShort
        if asking.cancelled():
            raise UpstreamUnavailable(self.what)
        self._remember(asking.result())

    async def _ask(self) -> M:
        return await self._call(self._get_model, None, min(self._timeout_s, _MODEL_TIMEOUT_S))

    def _asked(self, asking: asyncio.Task[M]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # retrieved: those who wanted it may be gone

    async def watch(self, every_s: float) -> None:
        """Ask again and again, for as long as this task lives: a full cache would hide a model change from us."""
        answered: bool | None = None
        while True:
            try:
                await self.refresh()
            except Problem as problem:
                if answered is not False:
                    log.warning("%s: %s", self.what, to_problem(problem).message)  # an incident it names is in the log
                answered = False
            else:
                if not answered and self._current is not None:
                    log.info("%s: serves %s (%s)", self.what, *_describe(self._current.model))
                answered = True
            await asyncio.sleep(every_s)

    async def model_of(self, identity: common_pb2.ModelIdentity, deadline: float | None = None) -> M:
        """The model of an answer, which is from now on the one that the pool serves.

        UpstreamUnavailable where the workers that answer now have another one.
        """
        for _ in range(_MODEL_TRIES):
            known = self._models.get(identity.fingerprint)
            if known is not None:
                self._remember(known)
                return known
            await self.refresh(deadline)
        raise UpstreamUnavailable(self.what, "is changing its model")

    def _remember(self, model: M) -> None:
        fingerprint = model.model.fingerprint
        self._models.pop(fingerprint, None)  # to the end: the first one is the one not seen for longest
        self._models[fingerprint] = self._current = model
        self._seen_at[fingerprint] = asyncio.get_running_loop().time()
        while len(self._models) > _KNOWN_MODELS:
            del self._seen_at[next(iter(self._models))]
            del self._models[next(iter(self._models))]

    async def _call(self, call: Call[Reply], deadline: float | None, most_s: float | None = None) -> Reply:
        """`call(timeout=…)` within the deadline (`loop.time()`), its failure as the Problem it is for our caller."""
        timeout_s = most_s = most_s or self._timeout_s
        if deadline is not None:
            left = deadline - asyncio.get_running_loop().time() - _MARGIN_S
            if left <= 0:
                raise DeadlineTooShort
            timeout_s = min(timeout_s, left)
        try:
            return await call(timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            problem = self._for_caller(from_rpc_error(error, self.what))
            if isinstance(problem, DeadlineTooShort) and timeout_s == most_s:
                problem = UpstreamUnavailable(self.what, f"had no answer within {timeout_s:g} s")
            raise problem from error

    def _for_caller(self, problem: Problem) -> Problem:
        """A worker's Problem as the gateway's caller gets it."""
        match problem:
            case ReplicaFull():  # the channel has tried the other replicas already
                return PoolSaturated(problem.retry_after_s)
            case NotReady():
                return UpstreamUnavailable(self.what, "is starting or stopping", problem.retry_after_s)
            case _:
                return problem


def _describe(identity: common_pb2.ModelIdentity) -> tuple[str, str]:
    return identity.name, identity.fingerprint


class EmbedPool(Pool[embed_pb2.GetModelResponse]):
    """The embed workers. `timeout_s` bounds every call, also one without a deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        super().__init__(
            "embed worker",
            partial(stub.GetModel, embed_pb2.GetModelRequest()),
            timeout_s,
        )
        self._embed = stub.Embed

    async def embed(self, request: embed_pb2.EmbedRequest, deadline: float | None) -> embed_pb2.EmbedResponse:
        """One call to one replica. Raises a Problem."""
        return await self._call(partial(self._embed, request), deadline)


class RerankPool(Pool[rerank_pb2.GetModelResponse]):
    """The rerank workers. `timeout_s` bounds every call, also one without a deadline."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float) -> None:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        super().__init__(
            "rerank worker",
            partial(stub.GetModel, rerank_pb2.GetModelRequest()),
            timeout_s,
        )
        self._rerank = stub.Rerank

    async def rerank(self, request: rerank_pb2.RerankRequest, deadline: float | None) -> rerank_pb2.RerankResponse:
        """One call to one replica. Raises a Problem."""
        return await self._call(partial(self._rerank, request), deadline)
