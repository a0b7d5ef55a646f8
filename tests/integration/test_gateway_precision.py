"""The gateway's vectors of a model with one large dimension among tiny ones, which float16 cannot hold."""

import hashlib

import numpy as np
import pytest

from services.api.vectors import decode
from tests.support.collections import create, search
from tests.support.gateway import Running, flushed, running
from tests.support.redis import RedisProcess
from tests.support.serving import failure
from tests.support.workers import EmbedWorker
from winnow.embed.v1 import embed_pb2
from winnow.retrieval.v1 import retrieval_pb2 as pb

TEXTS = [f"text {n}" for n in range(4)]
WIDTHS = (32, 33, 64, 96)


class Lopsided(EmbedWorker):
    """Values of some 1e-6, and one of 1.0."""

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large = large

    def vector(self, text: str, head: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        row = 1e-6 * np.random.default_rng(seed).standard_normal(self.dimensions)
        row[self.large] = 1.0
        return row.astype(np.float32)

    def unit(self, text: str, width: int) -> np.ndarray:
        row = self.vector(text, "")[:width].astype(np.float64)
        return row / np.linalg.norm(row)


class Zeros(EmbedWorker):
    """A vector of no direction."""

    def vector(self, text: str, head: str) -> np.ndarray:
        row = np.zeros(self.dimensions, np.float32)
        row[40:] = text != "zeros"
        return row


async def embed(
    gateway: Running, width: int, encoding: embed_pb2.Encoding = embed_pb2.ENCODING_FLOAT32
) -> list[embed_pb2.EmbedResult]:
    request = embed_pb2.EmbedRequest(texts=TEXTS, dimensions=width, encoding=encoding)
    return list((await gateway.embed.Embed(request)).results)


@pytest.mark.parametrize("large", [0, 31, 32, 95])
async def test_every_width_is_the_true_one_and_hits_equal_misses(redis8: RedisProcess, large: int) -> None:
    worker = Lopsided(large)
    async with running(redis8.url, embed=worker) as gateway:
        computed = await embed(gateway, 32)
        assert not any(result.cache_hit for result in computed)
        await flushed(gateway)
        local = {width: await embed(gateway, width) for width in WIDTHS}
        halves = await embed(gateway, 32, embed_pb2.ENCODING_FLOAT16)
    async with running(redis8.url, embed=worker) as other:
        shared = {width: await embed(other, width) for width in WIDTHS}
    assert len(worker.requests) == 1
    for place, text in enumerate(TEXTS):
        assert computed[place].embedding == local[32][place].embedding
        for width in WIDTHS:
            assert shared[width][place].cache_hit
            assert shared[width][place].embedding == local[width][place].embedding
            vector = decode(shared[width][place].embedding)
            assert np.linalg.norm(vector - worker.unit(text, width)) < 1e-3
        assert np.linalg.norm(decode(halves[place].embedding) - worker.unit(text, 32)) < 2e-3


@pytest.mark.parametrize("oversample", [1, 2])
@pytest.mark.parametrize("large", [0, 95])
async def test_collections_hold_and_score_the_true_vectors(redis8: RedisProcess, large: int, oversample: int) -> None:
    worker = Lopsided(large)
    width = 96 if oversample > 1 else 32  # cached vectors re-score in full width
    async with running(redis8.url, embed=worker, index_oversample=oversample) as gateway:
        await create(gateway, dimensions=width, quantization=pb.QUANTIZATION_NONE)
        results = await gateway.upsert("docs", *(pb.Document(id=text, text=text) for text in TEXTS))
        assert [result.outcome for result in results] == [pb.UPSERT_OUTCOME_CREATED] * len(TEXTS)
        found = await search(gateway, "docs", TEXTS[0], rerank=pb.RERANK_POLICY_SKIP)
    assert len(found.hits) == len(TEXTS)
    for hit in found.hits:
        true = float(worker.unit(TEXTS[0], width) @ worker.unit(hit.id, width))
        assert hit.retrieval_score == pytest.approx(true, abs=1e-3)


async def test_a_vector_without_a_direction_is_an_error(redis8: RedisProcess) -> None:
    async with running(redis8.url, embed=Zeros()) as gateway:
        answer = await gateway.embed.Embed(embed_pb2.EmbedRequest(texts=["zeros", "zeros up to 40"], dimensions=96))
        assert [result.WhichOneof("outcome") for result in answer.results] == ["error"] * 2
        await create(gateway)
        [result] = await gateway.upsert("docs", pb.Document(id="a", text="zeros"))
        assert result.error.message.startswith("The model gave no finite result")
        await failure(search(gateway, "docs", "zeros"))
