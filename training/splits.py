"""Selects the held-out data before training: groups by hash, and no near-duplicates in the training data."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from training.rows import Row

HELD_OUT_PACKAGES = 3000
_DUMMY = re.compile(r"transitional|dummy package|metapackage for compat", re.I)
SHINGLE = 5


def stable_hash(text: str) -> int:
    """A 64-bit hash that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hold_out(rows: Sequence[Row], count: int = HELD_OUT_PACKAGES) -> list[Row]:
    """One package from each of the `count` source packages with the lowest hashes of their names.

    With one package of each, near-identical packages (`foo`, `foo-dev`, `foo-data`) are not each other's distractors.
    The whole groups are held out nevertheless.
    """
    best: dict[str, Row] = {}
    for row in rows:
        if _DUMMY.search(row.query) or _DUMMY.search(row.doc):
            continue
        if row.group not in best or stable_hash(row.title) < stable_hash(best[row.group].title):
            best[row.group] = row
    chosen: list[Row] = []
    queries: set[str] = set()
    docs: set[str] = set()
    for group in sorted(best, key=lambda name: stable_hash("held-out:" + name)):
        row = best[group]
        if row.query.lower() in queries or row.doc.lower() in docs:
            continue
        queries.add(row.query.lower())
        docs.add(row.doc.lower())
        chosen.append(row)
        if len(chosen) == count:
            break
    return chosen


def shingles(text: str) -> set[int]:
    """Hashes of all sequences of five lower-case words; of the whole text if it is shorter."""
    words = re.findall(r"\w+", text.lower())
    if len(words) <= SHINGLE:
        return {hash(tuple(words))} if words else set()
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}


class NearDuplicates:
    """Finds texts that share at least `threshold` of their own or the other's shingles with a held-out text."""

    def __init__(self, texts: Iterable[str], threshold: float = 0.5) -> None:
        self._threshold = threshold
        self._sizes: list[int] = []
        self._index: dict[int, list[int]] = {}
        for number, text in enumerate(texts):
            marks = shingles(text)
            self._sizes.append(len(marks))
            for mark in marks:
                self._index.setdefault(mark, []).append(number)

    def __contains__(self, text: str) -> bool:
        """Whether `text` is a near-duplicate of a held-out text."""
        marks = shingles(text)
        hits: Counter[int] = Counter()
        for mark in marks:
            hits.update(self._index.get(mark, ()))
        return any(n >= self._threshold * min(len(marks), self._sizes[i]) for i, n in hits.items())


def training_rows(rows: Iterable[Row], held_out: Sequence[Row], others: Sequence[str] = ()) -> list[Row]:
    """The rows for training: of other groups, and without near-duplicates of held-out documents or queries."""
    groups = {(row.kind, row.group) for row in held_out}
    queries = {row.query.lower() for row in held_out}
    docs = NearDuplicates([*(row.doc for row in held_out), *others])
    return [
        row
        for row in rows
        if (row.kind, row.group) not in groups and row.query.lower() not in queries and row.doc not in docs
    ]
