"""Texts → engine → one EmbedResult for each: the part that unary calls and streams share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.embed.options import Options
from services.engine.types import EmbedItem, Failure, Timings
from services.runtime.errors import NonFiniteResult, Problem, to_status
from services.runtime.validate import oversized
from services.runtime.vectors import F32, encode, narrow
from services.worker.problems import engine_problems, item_problem
from services.worker.signals import Signals
from winnow.embed.v1 import embed_pb2

if TYPE_CHECKING:  # it imports torch, which takes seconds; the port is bound before
    from services.engine.engine import EmbedEngine

# Values that are encoded on the event loop; more than that (some milliseconds) goes to a thread.
_INLINE_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class Embedded:
    """The outcome for some texts, in their order."""

    results: list[embed_pb2.EmbedResult]
    tokens: int
    computed: int
    timings: Timings


async def embed(
    engine: EmbedEngine,
    signals: Signals,
    texts: Sequence[str],
    options: Options,
    *,
    field: Callable[[int], str],
    max_text_bytes: int,
    deadline: float | None,
    detailed: bool = True,
) -> Embedded:
    """Embeds; a text that fails does so in its place, named `field(index)`. Raises Problem for all of them.

    `detailed`: with spans of the stages.
    """
    problems: dict[int, Problem] = {}
    counted: dict[int, int] = {}  # tokens of texts that failed
    for index, text in enumerate(texts):
        if problem := oversized(field(index), text, max_text_bytes):
            problems[index] = problem
    sound = [index for index in range(len(texts)) if index not in problems]
    items: dict[int, EmbedItem] = {}
    spent = Timings()
    if sound:
        request = signals.request(detailed)
        with engine_problems():
            result = await engine.embed(
                texts if len(sound) == len(texts) else [texts[index] for index in sound],
                input_type=options.input_type,
                instruction=options.instruction,
                truncation=options.truncation,
                max_tokens=options.max_tokens,
                lane=options.lane,
                deadline=deadline,
                context=request,
            )
        spent = result.timings
        for index, item in zip(sound, result.items, strict=True):
            if isinstance(item, Failure):
                problems[index], counted[index] = item_problem(item.error, field(index)), item.tokens
            else:
                items[index] = item
        signals.served(request, spent, sum(item.tokens for item in items.values()))
    vectors = await _encoded(list(items.values()), options)
    results: list[embed_pb2.EmbedResult] = []
    for index in range(len(texts)):
        if index in problems:
            results.append(embed_pb2.EmbedResult(error=to_status(problems[index]), tokens=counted.get(index, 0)))
            continue
        item, embedding = items[index], next(vectors)
        if embedding is None:
            results.append(embed_pb2.EmbedResult(error=to_status(NonFiniteResult())))
        else:
            results.append(embed_pb2.EmbedResult(embedding=embedding, tokens=item.tokens, truncated=item.truncated))
    return Embedded(results, sum(item.tokens for item in items.values()), len(items), spent)


async def _encoded(items: Sequence[EmbedItem], options: Options) -> Iterator[embed_pb2.Embedding | None]:
    """A vector for each item; None where all of its values are zero, so that no unit vector can be made of them."""
    if not items:
        return iter(())

    def work() -> list[embed_pb2.Embedding | None]:
        rows: F32 = np.stack([item.vector for item in items])
        if options.dimensions < rows.shape[1]:
            rows = narrow(rows, options.dimensions)
        made = encode(rows, options.encoding)
        return [one if row.any() else None for one, row in zip(made, rows, strict=True)]

    if len(items) * options.dimensions <= _INLINE_VALUES:
        return iter(work())
    return iter(await asyncio.to_thread(work))
