"""The engine's front: texts in, vectors or scores out."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from services.engine import calibration
from services.engine.calibration import Calibration
from services.engine.errors import EngineError, InvalidInput, ModelBroken
from services.engine.jobs import Batch, Outcome
from services.engine.load import Loaded, load
from services.engine.scheduler import Scheduler
from services.engine.text.ends import WHOLE, Pause
from services.engine.text.prompts import Prompt, never
from services.engine.text.tokenizing import Tokenizing
from services.engine.types import (
    BatchReport,
    EmbedItem,
    EmbedResult,
    EngineSettings,
    Failure,
    Ids,
    InputType,
    Priority,
    QueueStats,
    RerankItem,
    RerankResult,
    Timings,
    Truncation,
    Vector,
)

T = TypeVar("T")

_INLINE_CHARACTERS = 2000  # tokenised on the event loop in about a millisecond, cheaper than a thread's hop
_CHARACTERS_PER_TOKEN = 8  # more than most texts have
# As many characters may wait to be tokenised as twice the queue's tokens have.
_READ_AHEAD = 2


class _Engine:
    """What both engines share: life cycle, tokenising beside the model, admission.

    `on_batch` is called on the event loop after every batch; `on_broken` once, when the device has failed for good and
    the process should end.
    """

    def __init__(self, loaded: Loaded, tokenizer_threads: int) -> None:
        self.info = loaded.info
        self.on_batch: Callable[[BatchReport], None] | None = None
        self.on_broken: Callable[[ModelBroken], None] | None = None
        self._limits, self._throughput, self._runner = loaded.limits, loaded.throughput, loaded.runner
        self._tokenizing = Tokenizing(tokenizer_threads, _READ_AHEAD * _CHARACTERS_PER_TOKEN * loaded.limits.queue)
        self._calibration = Calibration(loaded.throughput, loaded.limits, loaded.tokenizer.rows)
        self._calibrating: asyncio.Task[None] | None = None
        self._scheduler: Scheduler[Ids, Vector] | None = None

    def start(self) -> None:
        """Begins to take requests on the running event loop."""
        asyncio.get_running_loop()
        self._runner.on_batch = self._report
        self._runner.optimize()
        self._scheduler = Scheduler(self._run, self._limits, self._throughput)
        self._calibrating = asyncio.create_task(self._calibration.keep(self._scheduler), name="calibration")

    def stats(self) -> QueueStats:
        """The queue now, and the measured speed."""
        return self._running.stats()

    async def drain(self) -> None:
        """Refuses new requests (Draining) and returns when the admitted ones are answered."""
        await self._running.drain()

    def close(self) -> None:
        """Fails what is still queued with Draining and ends the threads. Safe to call twice."""
        if self._calibrating:
            self._calibrating.cancel()
        if self._scheduler:
            self._scheduler.close()
        self._runner.close()
        self._tokenizing.close()

    def _report(self, report: BatchReport) -> None:
        if self.on_batch and report.requests != (calibration.CONTEXT,):
            self.on_batch(report)

    async def _run(self, batch: Batch[Ids, Vector]) -> Sequence[Vector | EngineError]:
        try:
            return await self._runner(batch)
        except ModelBroken as error:
            if self.on_broken:
                self.on_broken(error)
            raise

    @property
    def _running(self) -> Scheduler[Ids, Vector]:
        if self._scheduler is None:
            raise RuntimeError("the engine has not been started")
        return self._scheduler

    def _limit(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return self.info.max_tokens
        if not 1 <= max_tokens <= self.info.max_tokens:
            raise InvalidInput("max_tokens", f"must be 1 to {self.info.max_tokens}")
        return max_tokens

    def _check_size(self, field: str, tokens: int) -> None:
        if tokens > self._limits.queue:
            raise InvalidInput(
                field, f"{tokens} tokens or more in one request; this server takes {self._limits.queue}: split it"
            )

    async def _tokenize(
        self,
        field: str,
        texts: Sequence[str],
        head: int,
        limit: int,
        priority: Priority,
        deadline: float | None,
        caller: str,
        build: Callable[[Pause], T],
    ) -> tuple[T, float]:
        """`build` and the seconds it took, on another thread if there is much to read.

        `head`: characters that are read with each text. `limit`: tokens that are kept of each. What would be refused
        for the queue before it is refused here, and costs no more than this.
        """
        start = time.perf_counter()
        self._check_size(field, len(texts))
        lengths = [head + len(text) for text in texts]
        estimate = sum(min(limit, 1 + length // _CHARACTERS_PER_TOKEN) for length in lengths)
        # Of a longer text no more is read, as a rule, than makes as many tokens as are kept.
        most = max(WHOLE, _CHARACTERS_PER_TOKEN * self.info.max_tokens)
        characters = sum(min(length, most) for length in lengths)
        with self._running.announce(min(estimate, self._limits.queue), priority, deadline, caller):
            if characters <= _INLINE_CHARACTERS:
                built = build(never)
            else:
                built = await self._tokenizing.run(build, characters=characters, priority=priority, deadline=deadline)
        return built, time.perf_counter() - start

    async def _compute(
        self,
        field: str,
        prompts: Sequence[Prompt | Failure],
        shared: int,
        priority: Priority,
        deadline: float | None,
        caller: str,
        context: object,
    ) -> tuple[list[tuple[Prompt, Vector] | Failure], Outcome[Vector]]:
        """Each prompt with its output row, or its failure."""
        sound = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        costs = [len(prompt.tokens) - shared for prompt in sound]
        self._check_size(field, sum(costs) + shared)
        outcome = await self._running.submit(
            [prompt.tokens for prompt in sound],
            costs,
            shared=shared,
            priority=priority,
            deadline=deadline,
            caller=caller,
            context=context,
        )
        rows = iter(outcome.results)
        answers: list[tuple[Prompt, Vector] | Failure] = []
        for prompt in prompts:
            if isinstance(prompt, Failure):
                answers.append(prompt)
                continue
            row = next(rows)
            answers.append(Failure(row) if isinstance(row, EngineError) else (prompt, row))
        return answers, outcome


class EmbedEngine(_Engine):
    """Texts → unit vectors."""

    def __init__(self, loaded: Loaded, tokenizer_threads: int) -> None:
        super().__init__(loaded, tokenizer_threads)
        self._prompts = loaded.family.embed_prompts(loaded.tokenizer)

    @classmethod
    def load(cls, settings: EngineSettings) -> Self:
        """Blocking: reads the weights, warms up, checks itself. Raises CheckpointError."""
        return cls(load(settings, embeds=True), settings.tokenizer_threads)

    async def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = InputType.DOCUMENT,
        instruction: str | None = None,
        truncation: Truncation = Truncation.END,
        max_tokens: int | None = None,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        caller: str = "",
        context: object = None,
    ) -> EmbedResult:
        """A vector or a failure per text, in order.

        `deadline` is on the event loop's clock (`loop.time()`). An absent or empty instruction means the default.
        Raises InvalidInput, Overloaded, DeadlineTooShort, Draining, ModelBroken for the request as a whole.
        """
        limit = self._limit(max_tokens)
        prompts, tokenize_s = await self._tokenize(
            "texts",
            texts,
            0 if input_type is InputType.DOCUMENT else len(instruction or self.info.default_instruction),
            limit,
            priority,
            deadline,
            caller,
            lambda pause: self._prompts.build(
                texts,
                input_type=input_type,
                instruction=instruction,
                truncation=truncation,
                max_tokens=limit,
                pause=pause,
            ),
        )
        answers, outcome = await self._compute("texts", prompts, 0, priority, deadline, caller, context)
        items: list[EmbedItem | Failure] = [
            answer
            if isinstance(answer, Failure)
            else EmbedItem(answer[1], tokens=len(answer[0].tokens), truncated=answer[0].truncated)
            for answer in answers
        ]
        return EmbedResult(items, Timings(tokenize_s, outcome.queue_s, outcome.forward_s))


class RerankEngine(_Engine):
    """A query and documents → a relevance logit per document."""

    def __init__(self, loaded: Loaded, tokenizer_threads: int) -> None:
        super().__init__(loaded, tokenizer_threads)
        self._prompts = loaded.family.rerank_prompts(loaded.tokenizer)

    @classmethod
    def load(cls, settings: EngineSettings) -> Self:
        """Blocking: reads the weights, warms up, checks itself. Raises CheckpointError."""
        return cls(load(settings, embeds=False), settings.tokenizer_threads)

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        truncation: Truncation = Truncation.END,
        max_tokens: int | None = None,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        caller: str = "",
        context: object = None,
    ) -> RerankResult:
        """A score or a failure per document, in the order given. Arguments and errors as for `EmbedEngine.embed`."""
        limit = self._limit(max_tokens)
        (shared, prompts), tokenize_s = await self._tokenize(
            "documents",
            [query, instruction or "", *documents],
            0,
            limit,
            priority,
            deadline,
            caller,
            lambda pause: self._prompts.build(
                query, documents, instruction=instruction, truncation=truncation, max_tokens=limit, pause=pause
            ),
        )
        answers, outcome = await self._compute("documents", prompts, shared, priority, deadline, caller, context)
        items: list[RerankItem | Failure] = [
            answer
            if isinstance(answer, Failure)
            else RerankItem(float(answer[1][0]), tokens=len(answer[0].tokens), truncated=answer[0].truncated)
            for answer in answers
        ]
        return RerankResult(items, Timings(tokenize_s, outcome.queue_s, outcome.forward_s))
