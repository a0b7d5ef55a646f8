"""Documents in a real Redis, straight through the index: cosines, and what other writers and lost keys do to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gateway.index.catalogue import Catalogue
from gateway.index.collection import Collection, ModelRef, Quantization
from gateway.index.commands import Known, Write
from gateway.index.documents import Digest, Document
from gateway.index.store import Store, StoreSettings
from gateway.redis.client import RedisClient
from services.api.vectors import narrow
from tests.support.redis import RedisProcess

DIMENSIONS = 384


@dataclass
class Stored:
    """A collection "docs" and the two halves of the index that hold it."""

    catalogue: Catalogue
    store: Store
    collection: Collection

    def known(self, ids: list[str]) -> Any:
        return self.store.look(self.collection, ids)

    async def write(self, document: Document, row: Any, known: Known | None = None) -> Any:
        seen = known if known is not None else (await self.known([document.id]))[document.id]
        [outcome] = await self.store.write(self.collection, [Write(document, Digest.of(document), row, seen)])
        return outcome


@asynccontextmanager
async def stored(
    url: str, quantization: Quantization = Quantization.INT8, shards: int = 1, timeout_s: float = 60.0
) -> AsyncIterator[Stored]:
    client = RedisClient(url, timeout_s)
    try:
        catalogue, store = Catalogue(client), Store(client, client, StoreSettings(200, 1000, 0))
        made = await catalogue.create("docs", ModelRef("m", "", "f"), DIMENSIONS, quantization, shards)
        yield Stored(catalogue, store, made)
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("quantization", "most"), [(Quantization.NONE, 1e-5), (Quantization.INT8, 0.01), (Quantization.BINARY, 0.15)]
)
async def test_scores_are_cosines(redis8: RedisProcess, quantization: Quantization, most: float) -> None:
    """At every angle, without a bias. A BINARY one has the spread of 384 signs: at most pi / (2 * sqrt(384)) = 0.08."""
    random = np.random.default_rng(5)
    angles = np.linspace(0, np.pi, 200)
    query = random.standard_normal(DIMENSIONS)
    query /= np.linalg.norm(query)
    rows = []
    for angle in angles:
        aside = random.standard_normal(DIMENSIONS)
        aside -= (aside @ query) * query
        rows.append(np.cos(angle) * query + np.sin(angle) * aside / np.linalg.norm(aside))
    async with stored(redis8.url, quantization) as index:
        for number, row in enumerate(rows):
            await index.write(Document(str(number), "text"), narrow(np.array([row], np.float32), DIMENSIONS)[0])
        found = await index.store.search(index.collection, query.astype(np.float32), 200, None, "", 60.0)
    assert found.incomplete_shards == 0
    errors = np.array([one.cosine - np.cos(angles[int(one.id)]) for one in found.neighbours])
    assert len(errors) == 200
    near = np.array([angles[int(one.id)] < np.pi / 2 for one in found.neighbours])
    for half in (errors[near], errors[~near]):  # 1 - 2 * hamming / dimensions is 0.14 off here, to either side
        assert abs(half.mean()) < 0.02
    assert np.abs(errors).mean() < most / 2
    assert np.abs(errors).max() < 2 * most
