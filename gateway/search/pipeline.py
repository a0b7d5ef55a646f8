"""Search: embed → retrieve → rerank → cut, within one deadline; if a stage fails, with the best that is left."""

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

import grpc
from opentelemetry.trace import Span

from gateway.errors import as_problem
from gateway.index.documents import Document
from gateway.index.errors import no_redis, wrong_model
from gateway.index.index import Index
from gateway.models.cached_model import WrongModelError
from gateway.models.embedder import Embedder, vectors
from gateway.models.reranker import Reranker
from gateway.search.budget import Budget, BudgetSettings, Stopwatch
from gateway.search.degradation import items_failed, shards_missing, stage_failed
from gateway.search.scoring import cut, nearest, rescored
from gateway.search.types import Candidate, FirstStage, Policy, SearchJob, SearchResult, SecondStage, Stage
from gateway.telemetry import GatewayMetrics
from services.api.backend import Embedded, EmbeddedText, FailedItem, ScoredDocument, embed_usage, rerank_usage
from services.api.options import EmbedOptions, RerankOptions
from services.api.vectors import F32
from services.runtime.errors import Problem, UpstreamUnavailable
from services.runtime.telemetry import names
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

# During a rollout, query and documents may be embedded by different models: maximum attempts for both.
_ATTEMPTS = 3
MOST_CANDIDATES = 4000


class Pipeline:
    """Runs searches. `retrieval_weight`: the blend if a request names none; None: what the rerank model recommends.

    `oversample` > 1: so many times the candidates are read from the index, and re-scored exactly if their full vectors
    are cached. `index` is None if the gateway has no Redis for collections.
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
        """Runs a search. `deadline`: a time of the event loop's clock. Raises Problem if no answer is possible."""
        began = time.perf_counter()
        budget = Budget(deadline, self._budget)
        if job.collection is not None:
            first = await self._from_collection(job, job.collection, budget)
        else:
            first = await self._from_documents(job, budget)
        second = SecondStage([None] * len(first.candidates))
        if job.policy is not Policy.SKIP and first.candidates:
            second = await self._rerank(job, first, budget)
        hits = cut(
            first.candidates,
            second.scores,
            retrieval_weight=second.retrieval_weight,
            min_score=job.min_score,
            top_n=job.top_n,
        )
        result = SearchResult(hits, first, second, (time.perf_counter() - began) * 1e3)
        for degradation in result.degradations:
            self._metrics.degraded(names.DegradedStage(degradation.stage.value), degradation.reason)
        return result

    async def _from_collection(self, job: SearchJob, name: str, budget: Budget) -> FirstStage:
        if self._index is None:
            raise no_redis()
        collection = await self._index.catalogue.resolve(name, budget.retrieve_s())
        filter_ = None
        if job.filter:
            filter_ = await self._index.catalogue.filter("collection.filter", job.filter, budget.retrieve_s())
        with Stopwatch() as embedding, self._stage(names.EMBEDDINGS):
            try:
                embedded = await self._embedder.embed(
                    [job.query], _query_options(job), budget.embed(), fingerprint=collection.model.fingerprint
                )
            except WrongModelError as error:
                raise wrong_model(collection, error.serving) from None
            vector = _row(embedded, collection.dimensions)
        with Stopwatch() as retrieving, self._stage(names.RETRIEVAL):
            with self._metrics.span(names.INDEX_SEARCH, {names.TOP_K: job.candidates}) as span:
                wanted = min(MOST_CANDIDATES, math.ceil(job.candidates * self._oversample))
                found = await self._index.store.search(
                    collection, vector, wanted, filter_, "collection.filter", budget.retrieve_s()
                )
                span.set_attribute(names.ITEMS, len(found.neighbours))
            read = await self._index.store.read(
                collection,
                [candidate.id for candidate in found.neighbours],
                text=job.text or job.policy is not Policy.SKIP or self._oversample > 1,
                metadata=job.metadata,
                budget_s=budget.retrieve_s(),
            )
        # A document may have been removed since its vector was found.
        near = [(read.documents[one.id], one.cosine) for one in found.neighbours if one.id in read.documents]
        if self._oversample > 1:
            near = await self._rescored(near, _row(embedded, embedded.model.dimensions), embedded.model)
        return FirstStage(
            _candidates(near[: job.candidates]),
            shards_missing(len(collection.shards), found, read),
            embedded.model.model,
            embed_usage(embedded.items),
            embedding.ms,
            retrieving.ms,
        )

    async def _rescored(
        self, near: Sequence[tuple[Document, float]], query: F32, model: embed_pb2.GetModelResponse
    ) -> list[tuple[Document, float]]:
        """Replaces the cosines of the index by exact ones, for documents whose full vector is cached; best first."""
        known = await self._embedder.known([document.text for document, _ in near], EmbedOptions(), model)
        places = [place for place, entry in enumerate(known) if entry is not None]
        rows = vectors([entry for entry in known if entry is not None], model.dimensions)
        return rescored(near, {places[row]: cosine for row, cosine in nearest(rows, query, len(places))})

    async def _from_documents(self, job: SearchJob, budget: Budget) -> FirstStage:
        with Stopwatch() as embedding, self._stage(names.EMBEDDINGS):
            try:
                asked, answered = await self._embed_both(job, budget.embed())
                native = asked.model.dimensions
                query = _row(asked, native)
            except Problem as problem:
                if job.policy is Policy.SKIP or problem.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                # The second stage does not need the first: it reranks all documents of the request.
                everything = _candidates([(document, 0.0) for document in job.documents])
                return FirstStage(everything, [stage_failed(Stage.EMBED, problem)])
        with Stopwatch() as retrieving, self._stage(names.RETRIEVAL):
            embedded = [
                document
                for document, item in zip(job.documents, answered.items, strict=True)
                if isinstance(item, EmbeddedText)
            ]
            found = nearest(answered.rows(native), query, job.candidates)
        missing = len(job.documents) - len(embedded)
        message = f"{missing} documents could not be embedded. They are missing."
        return FirstStage(
            _candidates([(embedded[row], cosine) for row, cosine in found]),
            [items_failed(Stage.EMBED, message)] if missing else [],
            asked.model.model,
            embed_usage([*asked.items, *answered.items]),
            embedding.ms,
            retrieving.ms,
        )

    async def _embed_both(self, job: SearchJob, deadline: float) -> tuple[Embedded, Embedded]:
        """Embeds query and documents concurrently, by one model."""
        texts, options = [document.text for document in job.documents], EmbedOptions(priority=job.priority)
        for _ in range(_ATTEMPTS):
            asked, answered = await asyncio.gather(
                self._embedder.embed([job.query], _query_options(job), deadline),
                self._embedder.embed(texts, options, deadline),
            )
            if asked.model.model.fingerprint == answered.model.model.fingerprint:
                return asked, answered
        raise UpstreamUnavailable("embed worker", "is changing its model")

    async def _rerank(self, job: SearchJob, first: FirstStage, budget: Budget) -> SecondStage:
        """The scores of the candidates; none if the stage fails and is not required."""
        documents = [candidate.document.text for candidate in first.candidates]
        options = RerankOptions(job.query, job.instruction, priority=job.priority)
        with Stopwatch() as timer:
            try:
                with self._stage(names.RERANK):
                    reranked = await self._reranker.rerank(documents, options, budget.rerank())
                failed = [item for item in reranked.items if isinstance(item, FailedItem)]
                if failed and (job.policy is Policy.REQUIRED or len(failed) == len(documents)):
                    raise as_problem(failed[0].error)
            except Problem as problem:
                unranked = first.model is None  # without a first stage there is no order to fall back on
                if job.policy is Policy.REQUIRED or unranked or problem.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                reranked = None
                degradations = [stage_failed(Stage.RERANK, problem)]
        if reranked is None:
            return SecondStage([None] * len(documents), degradations=degradations, rerank_ms=timer.ms)
        message = f"{len(failed)} of {len(documents)} candidates have no rerank score. They come last."
        return SecondStage(
            [item if isinstance(item, ScoredDocument) else None for item in reranked.items],
            self._weight(job, reranked.model) if first.model is not None else 0.0,
            [items_failed(Stage.RERANK, message)] if failed else [],
            reranked.model.model,
            rerank_usage(reranked.items),
            timer.ms,
        )

    def _weight(self, job: SearchJob, model: rerank_pb2.GetModelResponse) -> float:
        """The weight of the first stage: that of the request, the setting, or the rerank model's recommendation."""
        if job.retrieval_weight is not None:
            return job.retrieval_weight
        if self._retrieval_weight is not None:
            return self._retrieval_weight
        return model.recommended_retrieval_weight if model.HasField("recommended_retrieval_weight") else 0.0

    def _stage(self, operation: str) -> AbstractContextManager[Span]:
        return self._metrics.span(operation, {names.OPERATION: operation})


def _query_options(job: SearchJob) -> EmbedOptions:
    return EmbedOptions(embed_pb2.INPUT_TYPE_QUERY, job.instruction, priority=job.priority)


def _row(embedded: Embedded, dimensions: int) -> F32:
    """The vector of the query. Raises its error: without the query there is no first stage."""
    item = embedded.items[0]
    if isinstance(item, FailedItem):
        raise as_problem(item.error)
    row: F32 = embedded.rows(dimensions)[0]
    return row


def _candidates(near: Sequence[tuple[Document, float]]) -> list[Candidate]:
    return [Candidate(document, cosine, rank) for rank, (document, cosine) in enumerate(near, 1)]
