"""Our numbers against transformers run by the model cards' recipe: fp32, at most 1e-5 apart."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.devices.cpu import Cpu
from services.engine.devices.cuda_graphs import bucket_for, pad
from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.layers.elementwise import Elementwise, Fused, Mixed
from services.engine.layers.linear import LinearFormat, dense, has_int8, packed_16_bits, packed_fp16, packed_int8
from services.engine.models.base import unit_vectors
from services.engine.models.qwen3.family import Qwen3Family
from services.engine.models.qwen3.heads import yes_no
from services.engine.models.qwen3.prompts import RerankPrompts
from services.engine.packing.packing import Packed, pack
from services.engine.packing.transfer import lay_out, read, write
from services.engine.text.prompts import Prompt
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import EngineSettings, InputType, Priority, Truncation
from tests.support.plain_attention import plain_varlen
from tests.support.recipe import TASK, Recipe
from tests.unit.engine.conftest import LIMIT, Blocking, blocking, device, ids

WORDS = [
    "the",
    "capital",
    "of",
    "China",
    "is",
    "Beijing",
    "gravity",
    "attracts",
    "bodies",
    "7",
    "retrieve:",
    "passages,",
    "naïve",
    "中文",
    "\n\n",
    "don't",
    "3.14",
]
SHAPES = ["tied", "untied"]


def texts() -> list[str]:
    """From one token to beyond the limit, some with a beginning in common."""
    rng = np.random.default_rng(0)
    some = [" ".join(rng.choice(WORDS, n)) for n in (1, 2, 3, 5, 9, 17, 33, 60, 90, 400)]
    return ["a", "", *some, some[6] + " and more", some[6] + " and different", some[6]]


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, checkpoints: Callable[..., Path]) -> Path:
    return checkpoints(request.param)


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    return Recipe(folder, LIMIT)


# One step for everything, and steps so small that requests are split.
@pytest.fixture(scope="module", params=[4096, 128])
def options(folder: Path, request: pytest.FixtureRequest) -> EngineSettings:
    return EngineSettings(str(folder), max_tokens=LIMIT, batch_tokens=request.param, queue_tokens=100_000, threads=1)


@pytest.fixture(scope="module")
def embed(options: EngineSettings) -> Iterator[Blocking]:
    with blocking(EmbedEngine.load(options)) as engine:
        yield engine


@pytest.fixture(scope="module")
def rerank(options: EngineSettings) -> Iterator[Blocking]:
    with blocking(RerankEngine.load(options)) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected_documents(recipe: Recipe) -> np.ndarray:
    return recipe.embed(texts())


@pytest.fixture(scope="module")
def expected_queries(recipe: Recipe) -> np.ndarray:
    return recipe.embed([f"Instruct: {TASK}\nQuery:{text}" for text in texts()])


@pytest.fixture(scope="module")
def expected_scores(recipe: Recipe) -> np.ndarray:
    return recipe.rerank("what is the capital of China?", texts())


picks = st.lists(st.integers(0, len(texts()) - 1), min_size=1, max_size=20)
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(picks)
def test_documents_in_any_company_and_order(embed: Blocking, expected_documents: np.ndarray, pick: list[int]) -> None:
    items = embed("embed", [texts()[i] for i in pick]).items
    assert np.abs(np.stack([item.vector for item in items]) - expected_documents[pick]).max() <= 1e-5


@few
@given(picks)
def test_queries_in_any_company_and_order(embed: Blocking, expected_queries: np.ndarray, pick: list[int]) -> None:
    items = embed("embed", [texts()[i] for i in pick], input_type=InputType.QUERY, priority=Priority.BULK).items
    assert np.abs(np.stack([item.vector for item in items]) - expected_queries[pick]).max() <= 1e-5


@few
@given(picks)
def test_scores_in_any_company_and_order(rerank: Blocking, expected_scores: np.ndarray, pick: list[int]) -> None:
    items = rerank("rerank", "what is the capital of China?", [texts()[i] for i in pick]).items
    assert np.abs(np.array([item.probability for item in items]) - expected_scores[pick]).max() <= 1e-5


def test_other_instructions(embed: Blocking, rerank: Blocking, recipe: Recipe) -> None:
    task, some = "Retrieve parallel sentences", texts()[:6]
    items = embed("embed", some, input_type=InputType.SYMMETRIC, instruction=task).items
    expected = recipe.embed([f"Instruct: {task}\nQuery:{text}" for text in some])
    assert np.abs(np.stack([item.vector for item in items]) - expected).max() <= 1e-5
    items = rerank("rerank", "gravity", some, instruction=task).items
    assert np.abs(np.array([i.probability for i in items]) - recipe.rerank("gravity", some, task)).max() <= 1e-5


@pytest.mark.parametrize("dimensions", [1, 7, 32, 63])
def test_any_width_follows_from_the_full_vector(embed: Blocking, recipe: Recipe, dimensions: int) -> None:
    cut = np.stack([item.vector[:dimensions] for item in embed("embed", texts()[:5]).items])
    cut /= np.linalg.norm(cut, axis=1, keepdims=True)
    assert np.abs(cut - recipe.embed(texts()[:5], dimensions)).max() <= 1e-5


def test_vectors_are_of_unit_length(embed: Blocking) -> None:
    lengths = [np.linalg.norm(item.vector) for item in embed("embed", texts()).items]
    assert np.abs(np.array(lengths) - 1).max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_fp16_packed_weights_of_a_bf16_checkpoint(checkpoints: Callable[..., Path], shape: str) -> None:
    folder = checkpoints(shape, dtype=torch.bfloat16)
    recipe, words = Recipe(folder, LIMIT), Tokenizer(folder / "tokenizer.json")
    model = device(folder, linear=packed_fp16)
    sequences = [np.array([*recipe.ids(text)[: LIMIT - 1], recipe.end], np.int32) for text in texts()]
    rows = model.launch(model.pack(sequences))()
    assert (rows * recipe.embed(texts())).sum(1).min() >= 0.99999

    prompts = RerankPrompts(words)
    _, built = prompts.build("gravity", texts(), instruction=None, truncation=Truncation.END, max_tokens=LIMIT)
    family = Qwen3Family(Checkpoint.open(str(folder)))
    head = yes_no(family.config, family.tensors, prompts.yes_id, prompts.no_id, torch.device("cpu"))
    model = device(folder, linear=packed_fp16, head=head)
    packed = model.pack([prompt.tokens for prompt in built if isinstance(prompt, Prompt)])
    logits = model.launch(packed)()[:, 0]
    assert np.abs(1 / (1 + np.exp(-logits)) - recipe.rerank("gravity", texts())).max() <= 1e-4


def test_the_fused_pointwise_parts_are_the_same_function(checkpoints: Callable[..., Path]) -> None:
    rng = np.random.default_rng(3)
    sequences = [ids(rng, n) for n in (1, 5, 40)]
    one, other = device(checkpoints()), device(checkpoints(), elementwise=Fused(1e-6, torch.float32))
    rows = [model.launch(model.pack(sequences))() for model in (one, other)]
    assert np.abs(rows[0] - rows[1]).max() <= 1e-6


def test_long_texts_go_through_the_feed_forward_part_in_slices(checkpoints: Callable[..., Path]) -> None:
    sequences = [ids(np.random.default_rng(6), n) for n in (64, 70, 3)]
    whole, sliced = device(checkpoints()), device(checkpoints(), mlp_rows=32)
    assert np.abs(on_the_cpu(whole, sequences) - on_the_cpu(sliced, sequences)).max() <= 1e-6


SIXTEEN_BITS = [
    pytest.param(dense(torch.device("cpu"), torch.bfloat16), Fused(1e-6, torch.bfloat16), id="as on CUDA"),
    pytest.param(packed_16_bits(torch.bfloat16), Mixed(1e-6, torch.bfloat16), id="as on the CPU"),
]


@pytest.mark.parametrize(("linear", "elementwise"), SIXTEEN_BITS)
def test_bf16_answers_do_not_depend_on_the_batch(
    checkpoints: Callable[..., Path], linear: LinearFormat, elementwise: Elementwise
) -> None:
    rng = np.random.default_rng(4)
    head = ids(rng, 20)
    sequences = [np.concatenate([head, ids(rng, n)]) for n in (1, 5, 5, 40, 100)]
    model = device(checkpoints(), linear=linear, elementwise=elementwise)
    for run in (on_the_cpu, as_on_cuda):
        alone = np.concatenate([run(model, [sequence]) for sequence in sequences])
        assert (run(model, sequences) * alone).sum(1).min() >= 0.9999


@pytest.mark.skipif(not has_int8(), reason="this processor has no exact int8 products")
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_near_float32_in_any_batch(checkpoints: Callable[..., Path], shape: str) -> None:
    folder, rng = checkpoints(shape, dtype=torch.bfloat16), np.random.default_rng(4)
    head = ids(rng, 20)
    sequences = [np.concatenate([head, ids(rng, n)]) for n in (1, 5, 5, 40, 100)]
    exact, rounded = on_the_cpu(device(folder), sequences), device(folder, mlp=packed_int8)
    together = on_the_cpu(rounded, sequences)
    alone = np.concatenate([on_the_cpu(rounded, [sequence]) for sequence in sequences])
    assert (together * exact).sum(1).min() >= 0.99
    assert (together * alone).sum(1).min() >= 0.9999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_16_bits_are_closest_with_an_fp32_residual_stream(
    checkpoints: Callable[..., Path], shape: str, dtype: torch.dtype
) -> None:
    folder, rng = checkpoints(shape, dtype=torch.bfloat16), np.random.default_rng(7)
    head = ids(rng, 20)
    sequences = [np.concatenate([head, ids(rng, n)]) for n in (1, 5, 5, 40, 100)] + [ids(rng, n) for n in (1, 3, 200)]
    exact = on_the_cpu(device(folder), sequences)

    def off(elementwise: Elementwise) -> float:
        rounded = on_the_cpu(device(folder, linear=packed_16_bits(dtype), elementwise=elementwise), sequences)
        assert rounded.dtype == np.float32
        return float(1 - (rounded * exact).sum(1).mean())

    # These weights are larger than a trained model's, which makes attention peaky and rounding count.
    assert 0 < off(Mixed(1e-6, dtype)) <= 1e-4
    assert off(Mixed(1e-6, dtype)) < off(Fused(1e-6, dtype))


def test_the_cuda_layout_gives_the_same_vectors(checkpoints: Callable[..., Path]) -> None:
    rng = np.random.default_rng(5)
    head = ids(rng, 20)
    sequences = [np.concatenate([head, ids(rng, n)]) for n in (1, 5, 5, 40, 100)] + [ids(rng, 3), head]
    model = device(checkpoints())
    expected = on_the_cpu(model, sequences)
    assert np.abs(as_on_cuda(model, sequences) - expected).max() <= 1e-6
    packed = pack(sequences, min_saving=1.0)
    bucket = bucket_for(packed)
    assert bucket is not None
    assert np.abs(as_on_cuda(model, pad(packed, bucket)) - expected).max() <= 1e-6


def on_the_cpu(model: Cpu, sequences: list[np.ndarray]) -> np.ndarray:
    return model.launch(model.pack(sequences))()


def as_on_cuda(model: Cpu, batch: list[np.ndarray] | Packed) -> np.ndarray:
    """As on CUDA: through one buffer of integers, with gathered keys, or padded to the shape of a graph."""
    packed = batch if isinstance(batch, Packed) else pack(batch)
    layout = lay_out(packed)
    buffer = np.full(layout.words, -1, np.int32)
    write(packed, layout, buffer)
    batch_in = read(packed, layout, torch.from_numpy(buffer), causal=model.model.causal, kernel=plain_varlen)
    rows: np.ndarray = unit_vectors(model.model(batch_in)).numpy()[packed.outputs]
    return rows
