"""Texts to vectors: cached, computed once, spread over the embed workers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.cost import Cost
from gateway.entries import VectorEntry
from gateway.keys import EmbedFields, Keyspace
from gateway.memo import Answer, Computed, Deliver, Memo
from gateway.parallel import each, split
from gateway.rollout import of_one_model
from gateway.workers import EmbedPool
from services.runtime.errors import Internal, NonFiniteResult, to_status
from services.runtime.vectors import F32, narrow
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

SYMMETRIC_INSTRUCTION = "Retrieve semantically similar text"
_PARTS_AT_ONCE = 8
# Bytes of a worker's answer: of each value; beside the values of a result (or of an error in its place); beside all.
_VALUE_BYTES = 4
_AROUND_RESULT = 512
_AROUND_RESULTS = 4096


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Texts and how to embed them; None: the model's default."""

    texts: Sequence[str]
    input_type: embed_pb2.InputType = embed_pb2.INPUT_TYPE_DOCUMENT
    instruction: str | None = None
    truncation: common_pb2.Truncation = common_pb2.TRUNCATION_END
    max_tokens: int | None = None
    priority: common_pb2.Priority = common_pb2.PRIORITY_INTERACTIVE


@dataclass(frozen=True, slots=True)
class Embedded:
    """One answer for each text, in their order, all of one model."""

    model: embed_pb2.GetModelResponse
    answers: Sequence[Answer[VectorEntry]]
    cost: Cost

    @property
    def usage(self) -> common_pb2.Usage:
        """Tokens and cache use."""
        return usage(self.answers)


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How large a call to one worker may be: items, bytes of text, and bytes of the answer."""

    max_items: int
    max_bytes: int
    max_answer_bytes: int


class Embedder:
    """The first stage."""

    def __init__(self, pool: EmbedPool, memo: Memo[VectorEntry], keyspace: Keyspace, limits: SplitSettings) -> None:
        self._pool = pool
        self._memo = memo
        self._keyspace = keyspace
        self._limits = limits

    async def model(self, deadline: float | None = None) -> embed_pb2.GetModelResponse:
        """The model that the workers serve. Raises a Problem where none can be asked."""
        return await self._pool.model(deadline)

    async def embed(self, job: EmbedJob, deadline: float | None, fingerprint: str | None = None) -> Embedded:
        """Vectors of all texts, all of one model.

        With a `fingerprint`, of that model: WrongModelError where the workers have another. A text that fails has its
        error in its place. Raises a Problem where the whole call fails.
        """

        async def answer(model: embed_pb2.GetModelResponse) -> Sequence[Answer[VectorEntry]]:
            fields = _fields(job, model)
            keys = self._keyspace.embed(model.model.fingerprint, fields, job.texts)

            async def compute(positions: Sequence[int], cache_ms: float, deliver: Deliver[VectorEntry]) -> None:
                async def part(mine: list[int]) -> None:
                    await self._compute(job, fields, keys, model, mine, cache_ms, deliver, deadline)

                limits = self._limits
                most = min(limits.max_items, model.limits.max_items, self._fitting(model))
                parts = split(positions, job.texts, most, limits.max_bytes)
                await each(parts, part, _PARTS_AT_ONCE)

            return await self._memo.get(model.model, keys, job.priority, compute, deadline)

        model, answers = await of_one_model(self._pool, answer, deadline, fingerprint)
        return Embedded(model, answers, Cost.slowest(answer.cost for answer in answers))

    def _fitting(self, model: embed_pb2.GetModelResponse) -> int:
        """How many results surely fit into one message of the worker's, which must be one that is read here."""
        room = min(model.limits.max_message_bytes, self._limits.max_answer_bytes) - _AROUND_RESULTS
        return max(1, room // (_VALUE_BYTES * model.dimensions + _AROUND_RESULT))

    async def known(self, job: EmbedJob, model: embed_pb2.GetModelResponse) -> list[VectorEntry | None]:
        """The vectors that the caches have; no worker is asked."""
        keys = self._keyspace.embed(model.model.fingerprint, _fields(job, model), job.texts)
        return await self._memo.known(keys)

    async def _compute(
        self,
        job: EmbedJob,
        fields: EmbedFields,
        keys: Sequence[bytes],
        model: embed_pb2.GetModelResponse,
        positions: Sequence[int],
        cache_ms: float,
        deliver: Deliver[VectorEntry],
        deadline: float | None,
    ) -> None:
        texts = [job.texts[position] for position in positions]
        # Defaults are sent resolved, as they stand in the key: two replicas can never disagree on what a key means.
        request = embed_pb2.EmbedRequest(
            texts=texts,
            input_type=fields.input_type,
            instruction=fields.instruction or None,
            encoding=embed_pb2.ENCODING_FLOAT32,
            truncation=fields.truncation,
            max_tokens=fields.max_tokens,
            priority=job.priority,
        )
        response = await self._pool.embed(request, deadline)
        if len(response.results) != len(texts):
            raise Internal(ValueError(f"{len(response.results)} results for {len(texts)} texts"))
        identity = response.model
        kept = [keys[position] for position in positions]
        if identity.fingerprint != model.model.fingerprint:
            kept = self._keyspace.embed(identity.fingerprint, fields, texts)
        cost = Cost.of(response.timings, cache_ms)
        for position, key, result in zip(positions, kept, response.results, strict=True):
            deliver(position, Computed(_answer(identity, result, cost), key))


def _fields(job: EmbedJob, model: embed_pb2.GetModelResponse) -> EmbedFields:
    match job.input_type:
        case embed_pb2.INPUT_TYPE_QUERY:
            instruction = job.instruction or model.default_instruction
        case embed_pb2.INPUT_TYPE_SYMMETRIC:
            instruction = job.instruction or SYMMETRIC_INSTRUCTION
        case _:
            instruction = ""
    return EmbedFields(job.input_type, instruction, job.max_tokens or model.max_tokens, job.truncation)


def _answer(model: common_pb2.ModelIdentity, result: embed_pb2.EmbedResult, cost: Cost) -> Answer[VectorEntry]:
    if result.WhichOneof("outcome") == "error":
        return Answer(model, None, result.error, cost=cost, tokens=result.tokens)
    data = result.embedding.data
    sound = len(data) == _VALUE_BYTES * result.embedding.dimensions
    entry = VectorEntry.of(data, result.tokens, result.truncated) if sound else None
    if entry is None:
        return Answer(model, None, to_status(NonFiniteResult()), cost=cost)
    return Answer(model, entry, cost=cost)


def vectors(entries: Sequence[VectorEntry], dimensions: int) -> F32:
    """float32 [n, dimensions], unit rows. From the entries, whether they were cached or just computed."""
    if not entries:
        return np.zeros((0, dimensions), np.float32)
    return narrow(np.stack([entry.row for entry in entries]), dimensions)


def usage(answers: Sequence[Answer[VectorEntry]]) -> common_pb2.Usage:
    """Tokens and cache use of some answers."""
    hits = sum(answer.hit for answer in answers)
    tokens = sum(answer.entry.tokens for answer in answers if answer.entry is not None)
    return common_pb2.Usage(input_tokens=tokens, cache_hits=hits, cache_misses=len(answers) - hits)
