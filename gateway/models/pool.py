"""The worker pools, each over a channel that balances calls over the replicas.

A pool remembers the models it has seen by fingerprint: during a rollout two models answer by turns, and each answer is
read by its own model. Workers may be down when the gateway starts: the model is requested when it is needed.
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

# Subtracted from the caller's deadline, so that the worker gives up first and our response still arrives.
_MARGIN_S = 0.005
_KNOWN_MODELS = 8
# Timeout of GetModel, which a worker answers from memory.
_MODEL_TIMEOUT_S = 5.0
# Maximum calls of GetModel until the wanted one of two models answers.
_MODEL_TRIES = 8
# A model is no longer served if another one answered this much later.
_ROLLOUT_S = 30.0


class Model(Protocol):
    """What both kinds of GetModelResponse have in common."""

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
    """Workers of one kind; `what` is their name in messages."""

    def __init__(self, what: str, get_model: Call[M], timeout_s: float) -> None:
        self.what = what
        self._get_model = get_model
        self._timeout_s = timeout_s
        self._models: dict[str, M] = {}
        self._seen_at: dict[str, float] = {}
        self._current: M | None = None
        self._asking: asyncio.Task[M] | None = None

    async def model(self, deadline: float | None = None) -> M:
        """The model that answered last. UpstreamUnavailable if no worker has ever answered."""
        if self._current is None:
            await self.refresh(deadline)
        assert self._current is not None
        return self._current

    async def serving(self, fingerprint: str, deadline: float | None = None) -> M | None:
        """The model of that fingerprint if the pool serves it, alone or beside another one; else None."""
        await self.model(deadline)
        if not self._serves(fingerprint):
            await self.refresh(deadline)
        return self._models[fingerprint] if self._serves(fingerprint) else None

    def _serves(self, fingerprint: str) -> bool:
        return fingerprint in self._models and self._seen_at[fingerprint] > max(self._seen_at.values()) - _ROLLOUT_S

    async def refresh(self, deadline: float | None = None) -> None:
        """Asks a worker for its model. Concurrent callers share one call, and its failure."""
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
            asking.exception()  # marks it as retrieved: the callers may be gone

    async def watch(self, every_s: float) -> None:
        """Polls the model: if every request is a cache hit, a model change would otherwise go unnoticed."""
        answered: bool | None = None
        while True:
            try:
                await self.refresh()
            except Problem as problem:
                if answered is not False:
                    log.warning(
                        "%s: %s", self.what, to_problem(problem).message
                    )  # an incident that it names is in the log
                answered = False
            else:
                if not answered and self._current is not None:
                    log.info("%s: serves %s (%s)", self.what, *_describe(self._current.model))
                answered = True
            await asyncio.sleep(every_s)

    async def model_of(self, identity: common_pb2.ModelIdentity, deadline: float | None = None) -> M:
        """The model of an answer, which becomes the current one.

        UpstreamUnavailable if it is not known, and the workers that answer now have another one.
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
        self._models.pop(fingerprint, None)  # moved to the end: the first one is the one not seen for longest
        self._models[fingerprint] = self._current = model
        self._seen_at[fingerprint] = asyncio.get_running_loop().time()
        while len(self._models) > _KNOWN_MODELS:
            del self._seen_at[next(iter(self._models))]
            del self._models[next(iter(self._models))]

    async def _call(self, call: Call[Reply], deadline: float | None, most_s: float | None = None) -> Reply:
        """Sends a call within the deadline (`loop.time()`). Raises a Problem for the gateway's caller."""
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
        """A worker's Problem, as the gateway reports it."""
        match problem:
            case ReplicaFull():  # the channel has tried the other replicas
                return PoolSaturated(problem.retry_after_s)
            case NotReady():
                return UpstreamUnavailable(self.what, "is starting or stopping", problem.retry_after_s)
            case _:
                return problem


def _describe(identity: common_pb2.ModelIdentity) -> tuple[str, str]:
    return identity.name, identity.fingerprint


class EmbedPool(Pool[embed_pb2.GetModelResponse]):
    """The embed workers. `timeout_s` limits every call, also without a deadline."""

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
    """The rerank workers. `timeout_s` limits every call, also without a deadline."""

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
