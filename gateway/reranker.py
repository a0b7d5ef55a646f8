"""Query and documents to scores: cached, computed once, spread over the rerank workers where that pays."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.cost import Cost
from gateway.entries import ScoreEntry
from gateway.keys import Keyspace, RerankFields
from gateway.memo import Answer, Computed, Deliver, Memo
from gateway.parallel import each, split
from gateway.rollout import of_one_model
from gateway.workers import RerankPool
from services.runtime.errors import Internal
from winnow.common.v1 import common_pb2
from winnow.rerank.v1 import rerank_pb2

_PARTS_AT_ONCE = 8
# What every part of a split computes again: system prompt and template, in characters, beside instruction and query.
_TEMPLATE_CHARS = 300
# A part is worth its own call when its documents are so many times what it computes again.
_WORTH = 8


@dataclass(frozen=True, slots=True)
class RerankJob:
    """A query, its documents, and how to score them; None: the model's default."""

    query: str
    documents: Sequence[str]
    instruction: str | None = None
    truncation: common_pb2.Truncation = common_pb2.TRUNCATION_END
    max_tokens: int | None = None
    priority: common_pb2.Priority = common_pb2.PRIORITY_INTERACTIVE


@dataclass(frozen=True, slots=True)
class Reranked:
    """One answer for each document, in their order, all of one model."""

    model: rerank_pb2.GetModelResponse
    answers: Sequence[Answer[ScoreEntry]]
    cost: Cost

    @property
    def usage(self) -> common_pb2.Usage:
        """Tokens and cache use."""
        hits = sum(answer.hit for answer in self.answers)
        tokens = sum(answer.entry.tokens for answer in self.answers if answer.entry is not None)
        return common_pb2.Usage(input_tokens=tokens, cache_hits=hits, cache_misses=len(self.answers) - hits)


class Reranker:
    """The second stage. `split_bytes`: fewer bytes of documents than this are never split."""

    def __init__(self, pool: RerankPool, memo: Memo[ScoreEntry], keyspace: Keyspace, split_bytes: int) -> None:
        self._pool = pool
        self._memo = memo
        self._keyspace = keyspace
        self._split_bytes = split_bytes

    async def model(self, deadline: float | None = None) -> rerank_pb2.GetModelResponse:
        """The model that the workers serve. Raises a Problem where none can be asked."""
        return await self._pool.model(deadline)

    async def rerank(self, job: RerankJob, deadline: float | None) -> Reranked:
        """Scores of all documents, all of one model.

        A document that fails has its error in its place. Raises a Problem where the whole call fails.
        """

        async def answer(model: rerank_pb2.GetModelResponse) -> Sequence[Answer[ScoreEntry]]:
            fields = RerankFields(
                job.query,
                job.instruction or model.default_instruction,
                job.max_tokens or model.max_tokens,
                job.truncation,
            )
            keys = self._keyspace.rerank(model.model.fingerprint, fields, job.documents)

            async def compute(positions: Sequence[int], cache_ms: float, deliver: Deliver[ScoreEntry]) -> None:
                async def part(mine: list[int]) -> None:
                    await self._compute(job, fields, keys, model, mine, cache_ms, deliver, deadline)

                again = _TEMPLATE_CHARS + len(fields.instruction) + len(job.query)
                size = max(self._split_bytes, _WORTH * again)
                await each(split(positions, job.documents, model.limits.max_items, size), part, _PARTS_AT_ONCE)

            return await self._memo.get(model.model, keys, job.priority, compute, deadline)

        model, answers = await of_one_model(self._pool, answer, deadline)
        return Reranked(model, answers, Cost.slowest(answer.cost for answer in answers))

    async def _compute(
        self,
        job: RerankJob,
        fields: RerankFields,
        keys: Sequence[bytes],
        model: rerank_pb2.GetModelResponse,
        positions: Sequence[int],
        cache_ms: float,
        deliver: Deliver[ScoreEntry],
        deadline: float | None,
    ) -> None:
        documents = [job.documents[position] for position in positions]
        # Defaults are sent resolved, as they stand in the key: two replicas can never disagree on what a key means.
        request = rerank_pb2.RerankRequest(
            query=job.query,
            documents=documents,
            instruction=fields.instruction or None,
            truncation=fields.truncation,
            max_tokens=fields.max_tokens,
            priority=job.priority,
        )
        response = await self._pool.rerank(request, deadline)
        if len(response.results) + len(response.errors) != len(documents):
            raise Internal(ValueError(f"{len(response.results)} scores for {len(documents)} documents"))
        identity = response.model
        kept = [keys[position] for position in positions]
        if identity.fingerprint != model.model.fingerprint:
            kept = self._keyspace.rerank(identity.fingerprint, fields, documents)
        cost = Cost.of(response.timings, cache_ms)
        for result in response.results:
            entry = ScoreEntry(result.logit, result.tokens, result.truncated)
            scored = Answer(identity, entry, cost=cost)
            deliver(positions[result.index], Computed(scored, kept[result.index]))
        for failed in response.errors:
            unscored: Answer[ScoreEntry] = Answer(identity, None, failed.error, cost=cost)
            deliver(positions[failed.index], Computed(unscored, kept[failed.index]))
