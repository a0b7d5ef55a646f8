"""Batches of (query, document) token lists with similar texts in a batch, so that negatives are hard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.queries import QueryWriter
from training.rows import Row

MIX = {"debian": 0.5, "docstring": 0.26, "wordnet": 0.08, "foldoc": 0.06, "manual": 0.10}


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` are indices into the corpus. Rows with equal `groups` are not used as negatives of each other."""

    rows: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    queries: list[list[int]]
    docs: list[list[int]]


class Batches:
    """Draws batches from the corpus, of one kind of text each, and generates new queries each time."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Tokenizer,
        writer: QueryWriter,
        vectors: npt.NDArray[np.float16],
        clusters: int = 512,
        seed: int = 0,
    ) -> None:
        """`vectors`: the teacher's document vectors, shape (rows, 384), which determine the neighbours of a row."""
        self._rows = rows
        self._tokenizer = tokenizer
        self._writer = writer
        self._random = random.Random(seed)
        names = sorted({(row.kind, row.group) for row in rows})
        number = {name: i for i, name in enumerate(names)}
        self._groups = np.array([number[row.kind, row.group] for row in rows])
        self.docs = self._encode([row.doc[:2500] for row in rows])
        self._heads = self._encode([f"{row.title}\n{row.query}\n" for row in rows])
        self._titles = self._encode([f"{row.title}\n" for row in rows])
        self._clusters = {kind: self._cluster(kind, vectors, clusters) for kind in MIX}

    def _encode(self, texts: list[str]) -> list[npt.NDArray[np.int32]]:
        out: list[npt.NDArray[np.int32]] = []
        for start in range(0, len(texts), 4096):
            encoded = self._tokenizer.encode_batch_fast(texts[start : start + 4096], add_special_tokens=False)
            out += [np.array(e.ids, np.int32) for e in encoded]
        return out

    def _cluster(self, kind: str, vectors: npt.NDArray[np.float16], count: int) -> list[npt.NDArray[np.int64]]:
        """Assigns the rows of a kind to the nearest of `count` randomly chosen rows."""
        own = np.array([i for i, row in enumerate(self._rows) if row.kind == kind])
        count = min(count, max(1, len(own) // 64))
        chance = np.random.default_rng(self._random.randrange(2**32))
        centres = vectors[chance.choice(own, count, replace=False)].astype(np.float32)
        nearest = np.concatenate(
            [(vectors[own[s : s + 8192]].astype(np.float32) @ centres.T).argmax(1) for s in range(0, len(own), 8192)]
        )
        return [own[nearest == c] for c in range(count) if (nearest == c).any()]

    def draw(self, size: int, max_query: int, max_doc: int, neighbours: int = 32) -> Batch:
        """At most `size` rows of one kind, in groups of `neighbours` from clusters of similar texts."""
        kind = self._random.choices(list(MIX), list(MIX.values()))[0]
        clusters = self._clusters[kind]
        weights = [len(c) for c in clusters]
        chosen: dict[int, None] = {}
        for _ in range(4 * size // neighbours):
            cluster = self._random.choices(clusters, weights)[0]
            take = min(neighbours, len(cluster), size - len(chosen))
            chosen.update(dict.fromkeys(self._random.sample(list(cluster), take)))
            if len(chosen) >= size:
                break
        rows = np.array(list(chosen))
        texts = [self._writer.write(self._rows[i], self._random) for i in rows]
        queries = [q[:max_query].tolist() or [0] for q in self._encode(texts)]
        docs = [self._document(i, max_doc) for i in rows]
        return Batch(rows, self._groups[rows], queries, docs)

    def _document(self, row: int, limit: int) -> list[int]:
        """The document alone in half of the cases; otherwise preceded by its name, or by name and short line."""
        pick = self._random.random()
        doc = self.docs[row]
        if len(doc) > limit and self._random.random() < 0.15:
            start = self._random.randrange(len(doc) - limit)
            return _plain(doc[start : start + limit])
        if pick < 0.3:
            doc = np.concatenate([self._heads[row], doc])
        elif pick < 0.4:
            doc = np.concatenate([self._titles[row], doc])
        return _plain(doc[:limit])


def _plain(ids: npt.NDArray[np.int32]) -> list[int]:
    out: list[int] = ids.tolist()
    return out
