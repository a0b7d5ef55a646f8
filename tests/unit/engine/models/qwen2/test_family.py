"""Vectors of Qwen2 embedding models are those of sentence-transformers, within 1e-5 in float32."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.devices.cpu import Cpu
from services.engine.engine import EmbedEngine
from services.engine.layers.elementwise import Elementwise, Fused, InPlace, Mixed
from services.engine.layers.linear import LinearFormat, dense, fp32, has_int8, packed_16_bits, packed_fp16, packed_int8
from services.engine.layers.pooling import Pooling
from services.engine.models.base import unit_vectors
from services.engine.models.decoder.forward import Decoder
from services.engine.models.decoder.weights import read
from services.engine.models.qwen2.family import Qwen2Family
from services.engine.text.prompts import Prompt
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import EngineSettings, Failure, InputType, Truncation
from tests.support import qwen2
from tests.support.checkpoints import edit_config
from tests.unit.engine.conftest import LIMIT, Blocking, blocking, ids

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
STELLA_QUERY = QUERY.replace("the query\n", "the query.\n")
MODELS: dict[str, dict[str, Any]] = {
    "as gte-Qwen2": {"causal": False, "pooling": Pooling.LAST},
    "as stella": {"causal": False, "pooling": Pooling.MEAN, "width": 48},
    "wider": {"causal": False, "pooling": Pooling.LAST, "width": 96, "activation": torch.nn.Tanh()},
    "causal": {"causal": True, "pooling": Pooling.LAST, "with_head": True},
    "causal mean": {"causal": True, "pooling": Pooling.MEAN},
}


def texts() -> list[str]:
    """From none to more than the limit, some with a beginning in common."""
    rng = np.random.default_rng(0)
    words = ["the", "capital", "of", "China", "gravity", "bodies", "7", "naïve", "中文", "\n\n", "don't"]
    some = [" ".join(rng.choice(words, n)) for n in (1, 2, 3, 9, 33, 90, 400)]
    return ["a", "", *some, some[4] + " and more", some[4] + " and different", some[4]]


Saved = Callable[..., Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`saved(**how)`: the folder of a model, made once."""
    made: dict[str, Path] = {}

    def get(**how: Any) -> Path:
        key = str(sorted(how.items(), key=str))
        if key not in made:
            made[key] = qwen2.save(tmp_path_factory.mktemp("qwen2"), **how)
        return made[key]

    return get


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, saved: Saved) -> Path:
    return saved(**MODELS[request.param])


# One step for everything, and steps so small that requests are split.
@pytest.fixture(scope="module", params=[4096, 320])
def embed(folder: Path, request: pytest.FixtureRequest) -> Iterator[Blocking]:
    options = EngineSettings(
        str(folder), max_tokens=LIMIT, batch_tokens=request.param, queue_tokens=100_000, threads=1, dtype="float32"
    )
    with blocking(EmbedEngine.load(options)) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return qwen2.vectors(folder, texts())


def found(embed: Blocking, some: list[str], **options: Any) -> np.ndarray:
    return np.stack([item.vector for item in embed("embed", some, **options).items])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, len(texts()) - 1), min_size=1, max_size=15))
def test_vectors_in_any_company_and_order(embed: Blocking, expected: np.ndarray, pick: list[int]) -> None:
    vectors = found(embed, [texts()[i] for i in pick])
    assert vectors.shape[1] == embed.engine.info.dimensions == expected.shape[1]
    assert np.abs(vectors - expected[pick]).max() <= 1e-5


RECIPES = {
    "gte-Qwen2-7B-instruct": ("as gte-Qwen2", QUERY, "Instruct: Retrieve semantically similar text.\nQuery: "),
    "stella_en_1.5B_v5": ("as stella", STELLA_QUERY, "Instruct: Retrieve semantically similar text.\nQuery: "),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_mask_the_end_and_the_prompts(saved: Saved, tmp_path: Path, name: str) -> None:
    kind, query, symmetric = RECIPES[name]
    reference = saved(**MODELS[kind])
    bare = qwen2.save(tmp_path, **(MODELS[kind] | {"causal": None, "ends": False}))
    served = bare.rename(tmp_path / name)
    edit_config(served, auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})
    own = {"auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]}, "add_eos_token": True}
    qwen2.edit_json(served / "tokenizer_config.json", **own)
    with blocking(EmbedEngine.load(EngineSettings(str(served), max_tokens=LIMIT, threads=1, dtype="float32"))) as embed:
        assert embed.engine.info.default_instruction == query.removeprefix("Instruct: ").removesuffix("\nQuery: ")
        for input_type, prompt in (
            (InputType.DOCUMENT, ""),
            (InputType.QUERY, query),
            (InputType.SYMMETRIC, symmetric),
        ):
            vectors = found(embed, texts(), input_type=input_type)
            assert np.abs(vectors - qwen2.vectors(reference, texts(), prompt)).max() <= 1e-5
        vectors = found(embed, texts()[:3], input_type=InputType.QUERY, instruction="Find the capital")
        prompt = "Instruct: Find the capital\nQuery: "
        assert np.abs(vectors - qwen2.vectors(reference, texts()[:3], prompt)).max() <= 1e-5


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
@pytest.mark.parametrize("ends", [True, False])
def test_there_is_one_end_and_it_is_never_cut(saved: Saved, tmp_path: Path, truncation: Truncation, ends: bool) -> None:
    served = qwen2.save(tmp_path, causal=None, ends=ends).rename(tmp_path / "gte-Qwen2-7B-instruct")
    words = Tokenizer(served / "tokenizer.json")
    prompts = Qwen2Family(Checkpoint.open(str(served))).embed_prompts(words)
    for text, tokens in (("gravity", len(words.encode(["gravity"])[0]) + 1), ("gravity " * 50, 9)):
        (built,) = prompts.build(
            [text], input_type=InputType.DOCUMENT, instruction=None, truncation=truncation, max_tokens=9
        )
        assert isinstance(built, Prompt)
        assert len(built.tokens) == tokens
        assert np.flatnonzero(built.tokens == words.single(qwen2.END)).tolist() == [tokens - 1]


def test_a_text_without_a_token_fails_alone(saved: Saved) -> None:
    folder = saved(causal=False, pooling=Pooling.MEAN, ends=False)
    with blocking(EmbedEngine.load(EngineSettings(str(folder), max_tokens=LIMIT, threads=1))) as embed:
        first, empty, last = embed("embed", ["gravity", "", "gravity"]).items
    assert isinstance(empty, Failure)
    assert "texts[1]: is empty" in str(empty.error)
    np.testing.assert_array_equal(first.vector, last.vector)


def model(
    folder: Path, *, linear: LinearFormat = fp32, mlp: LinearFormat | None = None, ops: Elementwise | None = None
) -> Cpu:
    """The model of a checkpoint without its Dense modules, put together by hand."""
    family = Qwen2Family(Checkpoint.open(str(folder)))
    ops = ops or InPlace(1e-6)
    weights = read(family.config, family.tensors, torch.device("cpu"), ops.residual, linear, mlp or linear, LIMIT)
    built = family.prepare(torch.device("cpu"), torch.float32)(LIMIT)
    decoder = Decoder(family.config, weights, ops, 64, causal=built.causal, pooling=built.pooling)
    return Cpu(decoder, unit_vectors)


def rows(device: Cpu, sequences: list[np.ndarray]) -> np.ndarray:
    return device.launch(device.pack(sequences))()


FORMATS: dict[str, tuple[LinearFormat, LinearFormat | None, Elementwise, float]] = {
    "fused": (dense(torch.device("cpu"), torch.float32), None, Fused(1e-6, torch.float32), 1 - 1e-6),
    "packed fp16": (packed_fp16, None, InPlace(1e-6), 0.99999),
    "bf16 as on CUDA": (
        dense(torch.device("cpu"), torch.bfloat16),
        None,
        Fused(1e-6, torch.bfloat16),
        0.99,
    ),
    "bf16 as on the CPU": (packed_16_bits(torch.bfloat16), None, Mixed(1e-6, torch.bfloat16), 0.999),
    "int8": (fp32, packed_int8, InPlace(1e-6), 0.99),
}


@pytest.mark.parametrize("kind", ["as gte-Qwen2", "causal mean"])
@pytest.mark.parametrize("format", FORMATS)
def test_other_formats_are_near_float32_in_any_batch(saved: Saved, kind: str, format: str) -> None:
    if format == "int8" and not has_int8():
        pytest.skip("this processor has no exact int8 products")
    linear, mlp, ops, least = FORMATS[format]
    folder, rng = saved(**MODELS[kind], dtype=torch.bfloat16), np.random.default_rng(4)
    head = ids(rng, 20)
    sequences = [np.concatenate([head, ids(rng, n)]) for n in (1, 5, 5, 40, 100)] + [ids(rng, n) for n in (1, 3, 200)]
    exact, other = rows(model(folder), sequences), model(folder, linear=linear, mlp=mlp, ops=ops)
    together = rows(other, sequences)
    alone = np.concatenate([rows(other, [sequence]) for sequence in sequences])
    assert (together * exact).sum(1).min() >= least
    assert (together * alone).sum(1).min() >= 0.9999
