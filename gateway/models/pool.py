"""The worker pools: their models, and calls to them.

A pool remembers the models it has seen by fingerprint: during a rollout two models answer by turns, and each answer is
read by its own model. Workers may be down when the gateway starts: the model is requested when it is needed.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from gateway.models.dispatch import NO_WORK, Dispatcher, DispatchSettings, RunningCall, Send, Work
from gateway.models.liveness import Liveness
from gateway.models.replicas import Connect, Replicas
from gateway.telemetry import GatewayMetrics
from services.runtime.errors import DeadlineTooShort, Problem, UpstreamUnavailable
from services.runtime.rpc_status import to_problem
from services.runtime.telemetry import names
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
# Estimate of a request's model tokens: bytes of the message for each, and tokens for the prompt around each text.
_BYTES_PER_TOKEN = 3
_PROMPT_TOKENS = 8


class Model(Protocol):
    """What both kinds of GetModelResponse have in common."""

    @property
    def model(self) -> common_pb2.ModelIdentity:
        """Name, revision, fingerprint."""


log = logging.getLogger("winnow.workers")

M = TypeVar("M", bound=Model)
M_co = TypeVar("M_co", bound=Model, covariant=True)
Reply = TypeVar("Reply")


class GetModel(Protocol[M_co]):
    """Requests the model of one replica."""

    def __call__(self, stub: Any, timeout_s: float, wait: bool = False) -> RunningCall[M_co]:
        """Sends it. `wait`: until the replica is connected."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """`timeout_s` limits every call, also without a deadline. `refresh_s`: interval between two polls of the model."""

    timeout_s: float
    refresh_s: float
    dispatch: DispatchSettings


class Pool(Generic[M]):
    """Workers of one kind; `what` is their name in messages. `get_model(stub, timeout=…)` requests their model."""

    def __init__(
        self,
        what: str,
        kind: names.AnswerKind,
        replicas: Replicas[Any],
        get_model: GetModel[M],
        settings: PoolSettings,
        metrics: GatewayMetrics,
    ) -> None:
        self.what = what
        self._replicas, self._get_model, self._settings = replicas, get_model, settings
        self._dispatcher = Dispatcher(what, kind, replicas, settings.dispatch, metrics)
        self._liveness = Liveness(replicas, get_model)
        metrics.watch_replicas(kind, replicas.states)
        self._models: dict[str, M] = {}
        self._seen_at: dict[str, float] = {}
        self._current: M | None = None
        self._asking: asyncio.Task[M] | None = None
        self._background: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts to connect to the replicas, to watch them and to poll their model, in the background."""
        self._run(self._replicas.watch(), "replicas")
        self._run(self._liveness.watch(), "liveness")
        self._run(self._watch(), "model")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._background.append(asyncio.create_task(work, name=f"{self.what}-{name}"))

    async def close(self) -> None:
        """Ends what `start` has started, and closes all connections."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._replicas.close()

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

    async def is_changing(self, model: M, deadline: float | None = None) -> bool:
        """Whether the pool serves another model, beside this one or in its place."""
        await self.refresh(deadline)
        return any(self._serves(fingerprint) for fingerprint in self._models if fingerprint != model.model.fingerprint)

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
        return await self._call(self._get_model, None, most_s=min(self._settings.timeout_s, _MODEL_TIMEOUT_S))

    def _asked(self, asking: asyncio.Task[M]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # marks it as retrieved: the callers may be gone

    async def _watch(self) -> None:
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
            await asyncio.sleep(self._settings.refresh_s)

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

    async def _call(
        self, send: Send[Any, Reply], deadline: float | None, work: Work = NO_WORK, most_s: float | None = None
    ) -> Reply:
        """Sends a call within the deadline (`loop.time()`). Raises a Problem for the gateway's caller."""
        now = asyncio.get_running_loop().time()
        timeout_s = most_s = most_s or self._settings.timeout_s
        if deadline is not None:
            timeout_s = min(timeout_s, deadline - now - _MARGIN_S)
            if timeout_s <= 0:
                raise DeadlineTooShort
        try:
            return await self._dispatcher.call(send, now + timeout_s, work)
        except DeadlineTooShort as problem:
            if timeout_s < most_s:
                raise
            raise UpstreamUnavailable(self.what, f"had no answer within {timeout_s:g} s") from problem


def _describe(identity: common_pb2.ModelIdentity) -> tuple[str, str]:
    return identity.name, identity.fingerprint


def _work(request: embed_pb2.EmbedRequest | rerank_pb2.RerankRequest, texts: int) -> Work:
    tokens = request.ByteSize() // _BYTES_PER_TOKEN + _PROMPT_TOKENS * texts
    return Work(tokens, interactive=request.priority == common_pb2.PRIORITY_INTERACTIVE)


class EmbedPool(Pool[embed_pb2.GetModelResponse]):
    """The embed workers behind `target`. `connect` opens a channel to one of them."""

    def __init__(self, target: str, connect: Connect, settings: PoolSettings, metrics: GatewayMetrics) -> None:
        what = "embed worker"
        replicas = Replicas(what, target, connect, embed_pb2_grpc.EmbedServiceStub)
        super().__init__(what, names.AnswerKind.EMBED, replicas, _embed_model, settings, metrics)

    async def embed(self, request: embed_pb2.EmbedRequest, deadline: float | None) -> embed_pb2.EmbedResponse:
        """The answer of one replica. Raises a Problem."""
        return await self._call(
            lambda stub, timeout_s: stub.Embed(request, timeout=timeout_s), deadline, _work(request, len(request.texts))
        )


class RerankPool(Pool[rerank_pb2.GetModelResponse]):
    """The rerank workers behind `target`. `connect` opens a channel to one of them."""

    def __init__(self, target: str, connect: Connect, settings: PoolSettings, metrics: GatewayMetrics) -> None:
        what = "rerank worker"
        replicas = Replicas(what, target, connect, rerank_pb2_grpc.RerankServiceStub)
        super().__init__(what, names.AnswerKind.RERANK, replicas, _rerank_model, settings, metrics)

    async def rerank(self, request: rerank_pb2.RerankRequest, deadline: float | None) -> rerank_pb2.RerankResponse:
        """The answer of one replica. Raises a Problem."""
        return await self._call(
            lambda stub, timeout_s: stub.Rerank(request, timeout=timeout_s),
            deadline,
            _work(request, len(request.documents)),
        )


def _embed_model(stub: Any, timeout_s: float, wait: bool = False) -> RunningCall[embed_pb2.GetModelResponse]:
    call: RunningCall[embed_pb2.GetModelResponse] = stub.GetModel(
        embed_pb2.GetModelRequest(), timeout=timeout_s, wait_for_ready=wait
    )
    return call


def _rerank_model(stub: Any, timeout_s: float, wait: bool = False) -> RunningCall[rerank_pb2.GetModelResponse]:
    call: RunningCall[rerank_pb2.GetModelResponse] = stub.GetModel(
        rerank_pb2.GetModelRequest(), timeout=timeout_s, wait_for_ready=wait
    )
    return call
