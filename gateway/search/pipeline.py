"""Search: embed → retrieve → rerank → cut, within one deadline, and the best that is left when a stage fails."""

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import grpc
import numpy as np
from opentelemetry.trace import Span

from gateway.errors import as_problem
from gateway.index.documents import Document
from gateway.index.errors import no_redis, wrong_model
from gateway.index.index import Index
from gateway.models.cached_model import WrongModelError
from gateway.models.embedder import Embedder, vectors
from gateway.models.reranker import Reranker
from gateway.search.budget import Budget, BudgetSettings, Timer
from gateway.search.types import Candidate, Degradation, Hit, Policy, SearchJob, SearchResult, Stage
from gateway.telemetry import GatewayMetrics
from services.api.backend import Embedded, EmbeddedText, FailedItem, ScoredDocument, embed_usage, rerank_usage
from services.api.options import EmbedOptions, RerankOptions
from services.api.vectors import F32
from services.runtime.errors import DeadlineTooShort, DeviceMemory, PoolSaturated, Problem, UpstreamUnavailable
from services.runtime.telemetry import names
from winnow.embed.v1 import embed_pb2

# During a rollout query and documents may be embedded by different models: how often both are tried again.
_ATTEMPTS = 3
MOST_CANDIDATES = 4000


class Pipeline:
    """Runs searches. `retrieval_weight`: the blend where a request names none; None: what the rerank model recommends.

    `oversample` > 1: so many times the candidates are taken from the index, and re-scored exactly where their whole
    vectors are cached. `index` is None where the gateway has no Redis for collections.
    """

    def __init__(
        self,
        embedder: Embedder,
        reranker: Reranker,
        index: Index | None,
        budget: BudgetSettings,
        retrieval_weight: float | None,
        oversample: float,
        metrics: GatewayMetrics,
    ) -> None:
        self._embedder = embedder
        self._reranker = reranker
        self._index = index
        self._budget = budget
        self._retrieval_weight = retrieval_weight
        self._oversample = oversample
        self._metrics = metrics

    async def search(self, job: SearchJob, deadline: float | None) -> SearchResult:
        """The hits of a search. `deadline` is of the loop's clock. Raises a Problem where no answer is possible."""
        began = time.perf_counter()
        budget = Budget(deadline, self._budget)
        result = SearchResult()
        if job.collection is not None:
            candidates = await self._from_collection(job, job.collection, budget, result)
        else:
            candidates = await self._from_documents(job, budget, result)
        scores: Sequence[ScoredDocument | None] = [None] * len(candidates)
        if job.policy is not Policy.SKIP and candidates:
            with Timer() as timer:
                scores = await self._rerank(job, candidates, budget, result)
            result.rerank_ms = timer.ms
        result.hits = _cut(job, candidates, scores, result)
        for fell_short in result.degradations:
            self._metrics.degraded(fell_short.stage.value, fell_short.reason)
        result.total_ms = (time.perf_counter() - began) * 1e3
        return result

    async def _from_collection(
        self, job: SearchJob, name: str, budget: Budget, result: SearchResult
    ) -> list[Candidate]:
        if self._index is None:
            raise no_redis()
        collection = await self._index.catalogue.resolve(name)
        filter_ = await self._index.catalogue.filter("collection.filter", job.filter) if job.filter else None
        with Timer() as timer, self._stage(names.EMBEDDINGS):
            try:
                embedded = await self._embedder.embed(
                    [job.query], _query_options(job), budget.embed(), fingerprint=collection.model.fingerprint
                )
            except WrongModelError as error:
                raise wrong_model(collection, error.serving) from None
            result.embed_model, result.embed_usage = embedded.model.model, embed_usage(embedded.items)
            vector = _row(embedded, collection.dimensions)
            wanted = min(MOST_CANDIDATES, math.ceil(job.candidates * self._oversample))
        result.embed_ms = timer.ms
        with Timer() as timer, self._stage(names.RETRIEVAL):
            with self._metrics.span(names.INDEX_SEARCH, {names.TOP_K: job.candidates}) as span:
                found = await self._index.store.search(
                    collection, vector, wanted, filter_, "collection.filter", budget.retrieve_s()
                )
                span.set_attribute(names.ITEMS, len(found.candidates))
            missing = found.missing_shards
            read = await self._index.store.read(
                collection,
                [candidate.id for candidate in found.candidates],
                text=job.text or job.policy is not Policy.SKIP or self._oversample > 1,
                metadata=job.metadata,
                budget_s=budget.retrieve_s(),
            )
        result.retrieve_ms = timer.ms
        missing = max(missing, read.missing_shards)
        if missing:
            reason, what = "SHARD_UNAVAILABLE", "did not answer"
            if found.overloaded:
                reason, what = "RETRIEVE_OVERLOADED", "could not be asked in time, since too much is asked at once"
            message = f"{missing} of {len(collection.tags)} shards {what}; their documents are missing here."
            result.degradations.append(Degradation(Stage.RETRIEVE, reason, message))
        lost = max(found.incomplete_shards, int(read.damaged))
        if lost:
            message = (
                f"{lost} of {len(collection.tags)} shards have lost documents or parts of them. Upsert the "
                "collection's documents again."
            )
            result.degradations.append(Degradation(Stage.RETRIEVE, "SHARD_INCOMPLETE", message))
        # A document may have been removed since its vector was found.
        near = [(read.documents[one.id], one.cosine) for one in found.candidates if one.id in read.documents]
        if self._oversample > 1:
            near = await self._rescored(near, _row(embedded, embedded.model.dimensions), embedded.model)
        return [Candidate(document, cosine, rank) for rank, (document, cosine) in enumerate(near[: job.candidates], 1)]

    async def _rescored(
        self, near: Sequence[tuple[Document, float]], query: F32, model: embed_pb2.GetModelResponse
    ) -> list[tuple[Document, float]]:
        """Exact cosines in the place of the index's, for documents whose whole vector is cached; best first."""
        known = await self._embedder.known([document.text for document, _ in near], EmbedOptions(), model)
        places = [place for place, entry in enumerate(known) if entry is not None]
        rows = vectors([entry for entry in known if entry is not None], model.dimensions)
        exact = np.clip(rows @ query, -1.0, 1.0)
        cosines = [cosine for _, cosine in near]
        for place, cosine in zip(places, exact.tolist(), strict=True):
            cosines[place] = cosine
        order = sorted(range(len(near)), key=lambda place: (-cosines[place], place))
        return [(near[place][0], cosines[place]) for place in order]

    async def _from_documents(self, job: SearchJob, budget: Budget, result: SearchResult) -> list[Candidate]:
        with Timer() as timer, self._stage(names.EMBEDDINGS):
            try:
                asked, answered = await self._embed_both(job, budget.embed())
                native = asked.model.dimensions
                query = _row(asked, native)
            except Problem as problem:
                if job.policy is Policy.SKIP or problem.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                # The second stage can do without the first: it reranks everything that was sent along.
                result.degradations.append(_degradation(Stage.EMBED, problem))
                return [Candidate(document, 0.0, rank) for rank, document in enumerate(job.documents, 1)]
        result.embed_ms = timer.ms
        result.embed_model = asked.model.model
        result.embed_usage = embed_usage([*asked.items, *answered.items])
        with Timer() as timer, self._stage(names.RETRIEVAL):
            embedded = [
                document
                for document, item in zip(job.documents, answered.items, strict=True)
                if isinstance(item, EmbeddedText)
            ]
            if len(embedded) < len(job.documents):
                message = f"{len(job.documents) - len(embedded)} documents could not be embedded; they are missing."
                result.degradations.append(Degradation(Stage.EMBED, "EMBED_PARTIAL", message))
            cosines = np.clip(answered.rows(native) @ query, -1.0, 1.0)
            order = np.argsort(-cosines, kind="stable")[: job.candidates]
        result.retrieve_ms = timer.ms
        return [Candidate(embedded[int(place)], float(cosines[place]), rank) for rank, place in enumerate(order, 1)]

    async def _embed_both(self, job: SearchJob, deadline: float) -> tuple[Embedded, Embedded]:
        """Query and documents, side by side, by one model."""
        texts, options = [document.text for document in job.documents], EmbedOptions(priority=job.priority)
        for _ in range(_ATTEMPTS):
            asked, answered = await asyncio.gather(
                self._embedder.embed([job.query], _query_options(job), deadline),
                self._embedder.embed(texts, options, deadline),
            )
            if asked.model.model.fingerprint == answered.model.model.fingerprint:
                return asked, answered
        raise UpstreamUnavailable("embed worker", "is changing its model")

    async def _rerank(
        self, job: SearchJob, candidates: Sequence[Candidate], budget: Budget, result: SearchResult
    ) -> Sequence[ScoredDocument | None]:
        """The scores of the candidates, None for those that have none; also where the stage failed and may."""
        documents = [candidate.document.text for candidate in candidates]
        options = RerankOptions(job.query, job.instruction, priority=job.priority)
        try:
            with self._stage(names.RERANK):
                reranked = await self._reranker.rerank(documents, options, budget.rerank())
            failed = [item for item in reranked.items if isinstance(item, FailedItem)]
            if failed and (job.policy is Policy.REQUIRED or len(failed) == len(candidates)):
                raise as_problem(failed[0].error)
        except Problem as problem:
            unranked = result.embed_model is None  # without a first stage there is no order to fall back on
            if job.policy is Policy.REQUIRED or unranked or problem.code is grpc.StatusCode.INVALID_ARGUMENT:
                raise
            result.degradations.append(_degradation(Stage.RERANK, problem))
            return [None] * len(candidates)
        result.rerank_model, result.rerank_usage = reranked.model.model, rerank_usage(reranked.items)
        if failed:
            message = f"{len(failed)} of {len(candidates)} candidates have no rerank score; they come last."
            result.degradations.append(Degradation(Stage.RERANK, "RERANK_PARTIAL", message))
        weight = job.retrieval_weight if job.retrieval_weight is not None else self._retrieval_weight
        if weight is None:
            model = reranked.model
            weight = model.recommended_retrieval_weight if model.HasField("recommended_retrieval_weight") else 0.0
        result.retrieval_weight = weight if result.embed_model is not None else 0.0
        return [item if isinstance(item, ScoredDocument) else None for item in reranked.items]

    def _stage(self, operation: str) -> AbstractContextManager[Span]:
        return self._metrics.span(operation, {names.OPERATION: operation})


def _query_options(job: SearchJob) -> EmbedOptions:
    return EmbedOptions(embed_pb2.INPUT_TYPE_QUERY, job.instruction, priority=job.priority)


def _row(embedded: Embedded, dimensions: int) -> F32:
    """The query's vector, or its error raised: without it there is no first stage."""
    item = embedded.items[0]
    if isinstance(item, FailedItem):
        raise as_problem(item.error)
    row: F32 = embedded.rows(dimensions)[0]
    return row


def _degradation(stage: Stage, problem: Problem) -> Degradation:
    match problem:
        case DeadlineTooShort():
            what, message = "DEADLINE", "There was not enough time."
        case PoolSaturated() | DeviceMemory():
            what, message = "OVERLOADED", problem.message
        case _:
            what, message = "UNAVAILABLE", problem.message
    return Degradation(stage, f"{stage.name}_{what}", message)


def _cut(
    job: SearchJob, candidates: Sequence[Candidate], scores: Sequence[ScoredDocument | None], result: SearchResult
) -> list[Hit]:
    """Blends both scores and keeps the best. A candidate without a rerank score counts as one with probability 0."""
    weight = result.retrieval_weight
    hits = [
        Hit(
            candidate,
            weight * candidate.cosine + (1.0 - weight) * (entry.score if entry is not None else 0.0),
            entry,
        )
        for candidate, entry in zip(candidates, scores, strict=True)
    ]
    hits.sort(key=lambda hit: (-hit.score, hit.candidate.rank))
    least = -math.inf if job.min_score is None else job.min_score
    return [hit for hit in hits if hit.score >= least][: job.top_n]
