"""Encoders against sentence-transformers run on the same folder: fp32, at most 1e-5 apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import CheckpointError, InvalidInput
from services.engine.layers.linear import has_int8
from services.engine.types import EngineSettings, InputType, Score, Truncation
from tests.support import encoders
from tests.support.encoders import HIDDEN, KINDS, POSITIONS
from tests.unit.engine.conftest import Blocking, blocking

WORDS = [
    "the",
    "capital",
    "of",
    "China",
    "is",
    "Beijing",
    "gravity",
    "7",
    "naïve",
    "中文",
    "\n\n",
    "don't",
    "3.14",
    "Ü",
]
QUERY = "what is the capital of China?"
TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
PROMPTS = {"query": "query: ", "document": "passage: "}


def texts() -> list[str]:
    """From nothing to beyond the limit, some with a beginning in common."""
    rng = np.random.default_rng(0)
    some = [" ".join(rng.choice(WORDS, n)) for n in (1, 2, 3, 5, 9, 17, 33, 60, 90, 400)]
    return ["a", "", " b ", *some, some[6] + " and more", some[6] + " and different", some[6]]


@dataclass(repr=False)
class Case:
    """A folder, the engine over it, and what sentence-transformers makes of all texts."""

    engine: Blocking
    expected: Any


def options(folder: Path, **more: Any) -> EngineSettings:
    return EngineSettings(str(folder), **{"threads": 1, "batch_tokens": 256, "queue_tokens": 100_000, **more})


EMBEDDERS: dict[str, dict[str, Any]] = {
    "first token": {"pooling": "cls"},
    "last token": {"pooling": "lasttoken"},
    "mean": {"pooling": "mean", "prompts": PROMPTS},
    "dense layers": {"pooling": "mean", "dense": [(HIDDEN + 16, TANH), (HIDDEN + 7, IDENTITY)], "prompts": PROMPTS},
    "not normalised": {"pooling": "cls", "dense": [(20, IDENTITY)], "normalizes": False},
    "a default prompt": {"pooling": "cls", "prompts": {"s": "Say: "}, "default_prompt_name": "s"},
}


CASES = [*(f"bert, {what}" for what in EMBEDDERS), "roberta, mean", "xlm-roberta, first token", "xlm-roberta, mean"]


@pytest.fixture(scope="module", params=CASES)
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    from sentence_transformers import SentenceTransformer

    kind, _, what = request.param.partition(", ")
    folder = encoders.describe(encoders.save(tmp_path_factory.mktemp(kind), kind), **EMBEDDERS[what])
    model = SentenceTransformer(str(folder), device="cpu")
    encode: dict[InputType, Any] = {InputType.DOCUMENT: model.encode_document, InputType.QUERY: model.encode_query}
    if "default_prompt_name" in EMBEDDERS[what]:
        encode[InputType.SYMMETRIC] = model.encode
    expected = {kind: unit(encode[kind](texts())) for kind in encode}
    with blocking(EmbedEngine.load(options(folder))) as engine:
        yield Case(engine, expected)


@pytest.fixture(scope="module", params=KINDS)
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    from sentence_transformers import CrossEncoder

    folder = encoders.save(tmp_path_factory.mktemp(request.param), request.param, classifies=True)
    model = CrossEncoder(str(folder), device="cpu")
    pairs = [(QUERY, text) for text in texts()]
    expected = {
        name: model.predict(pairs, activation_fn=how) for name, how in [("logit", torch.nn.Identity()), ("", None)]
    }
    with blocking(RerankEngine.load(options(folder))) as engine:
        yield Case(engine, expected)


def unit(vectors: Any) -> np.ndarray:
    rows: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


def vectors(engine: Blocking, some: list[str], **how: Any) -> np.ndarray:
    return np.stack([item.vector for item in engine("embed", some, **how).items])


picks = st.lists(st.integers(0, len(texts()) - 1), min_size=1, max_size=20)
few = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(picks)
def test_vectors_in_any_company_and_order(embedder: Case, pick: list[int]) -> None:
    for input_type, expected in embedder.expected.items():
        got = vectors(embedder.engine, [texts()[i] for i in pick], input_type=input_type)
        assert np.abs(got - expected[pick]).max() <= 1e-5
    assert got.shape[1] == embedder.engine.engine.info.dimensions
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() <= 1e-6


@few
@given(picks)
def test_scores_in_any_company_and_order(reranker: Case, pick: list[int]) -> None:
    items = reranker.engine("rerank", QUERY, [texts()[i] for i in pick]).items
    logits = np.array([item.logit for item in items])
    assert np.abs(logits - reranker.expected["logit"][pick]).max() <= 1e-5
    assert np.abs(np.array([item.probability for item in items]) - reranker.expected[""][pick]).max() <= 1e-5


def test_a_text_is_cut_as_the_reference_cuts_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = encoders.describe(encoders.save(tmp_path, "bert"), prompts=PROMPTS)
    encoders.write(folder / "sentence_bert_config.json", {"max_seq_length": 70, "do_lower_case": True})
    expected = unit(SentenceTransformer(str(folder), device="cpu").encode_query(texts()))
    with blocking(EmbedEngine.load(options(folder))) as engine:
        items = engine("embed", texts(), input_type=InputType.QUERY).items
        assert engine.engine.info.max_tokens == 70
    assert np.abs(np.stack([item.vector for item in items]) - expected).max() <= 1e-5
    assert max(item.tokens for item in items) == 70
    assert sum(item.truncated for item in items) == sum(item.tokens == 70 for item in items) >= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["model.", "bert.", "roberta.", "model.roberta."])
def test_names_of_tensors_may_have_a_prefix(tmp_path: Path, kind: str, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = encoders.describe(encoders.save(tmp_path, kind))
    with blocking(EmbedEngine.load(options(folder))) as engine:
        bare = vectors(engine, texts()), engine.engine.info
    tensors = load_file(folder / "model.safetensors")
    more = {
        "embeddings.position_ids": torch.arange(9),
        "cls.predictions.bias": torch.ones(3),
        "lm_head.bias": torch.ones(3),
    }
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()} | more, folder / "model.safetensors")
    with blocking(EmbedEngine.load(options(folder))) as engine:
        assert np.array_equal(vectors(engine, texts()), bare[0])


def test_an_answer_does_not_depend_on_how_the_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = encoders.describe(encoders.save(tmp_path, "bert"))
    first = EmbedEngine.load(options(folder)).info.fingerprint
    tensors = load_file(folder / "model.safetensors")
    save_file({f"bert.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert EmbedEngine.load(options(folder)).info.fingerprint == first


def test_all_that_changes_vectors_changes_the_fingerprint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = encoders.describe(encoders.save(tmp_path, "bert"), dense=[(20, TANH)])
    seen = {EmbedEngine.load(options(folder)).info.fingerprint}
    file = folder / "2_Dense" / "model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(file).items()}, file)
    seen.add(EmbedEngine.load(options(folder)).info.fingerprint)
    encoders.describe(folder, dense=[(20, IDENTITY)])
    seen.add(EmbedEngine.load(options(folder)).info.fingerprint)
    encoders.describe(folder, dense=[(20, IDENTITY)], pooling="cls")
    seen.add(EmbedEngine.load(options(folder)).info.fingerprint)
    encoders.describe(folder, dense=[(20, IDENTITY)], pooling="cls", prompts=PROMPTS)
    seen.add(EmbedEngine.load(options(folder)).info.fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu"])
def test_activations(tmp_path: Path, act: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = encoders.describe(encoders.save(tmp_path, "bert", hidden_act=act))
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts())
    with blocking(EmbedEngine.load(options(folder))) as engine:
        assert np.abs(vectors(engine, texts()) - expected).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_rounded_formats_are_near_in_any_batch(tmp_path: Path, dtype: str, pooling: str) -> None:
    if dtype == "int8" and not has_int8():
        pytest.skip("this processor has no exact int8 products")
    folder = encoders.describe(encoders.save(tmp_path, "bert"), pooling=pooling)
    with blocking(EmbedEngine.load(options(folder, dtype="float32"))) as engine:
        exact = vectors(engine, texts())
    with blocking(EmbedEngine.load(options(folder, dtype=dtype))) as engine:
        together = vectors(engine, texts())
        alone = np.concatenate([vectors(engine, [text]) for text in texts()])
    assert (together * exact).sum(1).min() >= 0.99
    assert (together * alone).sum(1).min() >= 0.9999


def test_a_float16_checkpoint_is_computed_in_float32(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = encoders.describe(encoders.save(tmp_path, "xlm-roberta", dtype=torch.float16))
    expected = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}).encode(texts())
    with blocking(EmbedEngine.load(options(folder))) as engine:
        assert engine.engine.info.dtype == "float32"
        assert np.abs(vectors(engine, texts()) - expected).max() <= 1e-5


def test_the_whole_length_of_a_roberta_can_be_used(tmp_path: Path) -> None:
    folder = encoders.describe(encoders.save(tmp_path, "roberta"))
    encoders.write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with blocking(EmbedEngine.load(options(folder))) as engine:
        assert engine.engine.info.max_tokens == POSITIONS  # two less than its table has
        (item,) = engine("embed", ["a " * 1000]).items
    assert item.tokens == POSITIONS


def test_a_special_token_in_a_text_is_plain_text(tmp_path: Path) -> None:
    folder = encoders.save(tmp_path, "bert", classifies=True)
    with blocking(RerankEngine.load(options(folder))) as engine:
        forged, plain = engine("rerank", "a", ["[SEP]", "( SEP )"]).items
    assert forged.tokens == plain.tokens


def test_pairs_are_cut_at_the_document_only(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    folder = encoders.save(tmp_path, "bert", classifies=True)
    model = CrossEncoder(str(folder), device="cpu", max_length=64)
    long = " ".join(WORDS[:5] * 40)
    with blocking(RerankEngine.load(options(folder, max_tokens=64))) as engine:
        (end,) = engine("rerank", QUERY, [long]).items
        (start,) = engine("rerank", QUERY, [long], truncation=Truncation.START).items
        (failed,) = engine("rerank", QUERY, [long], truncation=Truncation.ERROR).items
        with pytest.raises(InvalidInput, match=r"query: it takes .* no room is left"):
            engine("rerank", long, ["a"])
    assert abs(end.logit - float(model.predict([(QUERY, long)], activation_fn=torch.nn.Identity())[0])) <= 1e-5
    assert end.tokens == start.tokens == 64
    assert end.truncated
    assert start.truncated
    assert abs(end.logit - start.logit) > 1e-4
    assert isinstance(failed.error, InvalidInput)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ({}, Score.PROBABILITY),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, Score.LOGIT),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, Score.PROBABILITY),
        ({"sbert_ce_default_activation_function": IDENTITY}, Score.LOGIT),
    ],
)
def test_scores_are_what_the_folder_says(tmp_path: Path, said: dict[str, Any], score: Score) -> None:
    from tests.support.checkpoints import edit_config

    folder = encoders.save(tmp_path, "roberta", classifies=True)
    edit_config(folder, **said)
    info = RerankEngine.load(options(folder)).info
    assert info.capabilities.score is score
    assert info.dimensions == 0
    assert not info.capabilities.instructions


def test_a_recipe_gives_what_a_folder_lacks(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "multilingual-e5-large-instruct"
    folder.mkdir()
    encoders.save(folder, "xlm-roberta")
    with blocking(EmbedEngine.load(options(folder))) as engine:
        info = engine.engine.info
        assert info.capabilities.instructions
        assert set(info.capabilities.input_types) == set(InputType)
        got = vectors(engine, texts(), input_type=InputType.QUERY, instruction="Find {it}")
        plain = vectors(engine, texts())
    encoders.describe(folder, pooling="mean", prompts={"query": "Instruct: Find {it}\nQuery: "})
    model = SentenceTransformer(str(folder), device="cpu")
    assert np.abs(got - model.encode_query(texts())).max() <= 1e-5
    assert np.abs(plain - model.encode(texts())).max() <= 1e-5


def test_without_modules_or_recipe_nothing_says_how_a_vector_is_made(tmp_path: Path) -> None:
    folder = encoders.save(tmp_path, "bert")
    with pytest.raises(CheckpointError, match=r"modules\.json is missing, .* add modules\.json and 1_Pooling"):
        EmbedEngine.load(options(folder))


def test_a_reranker_stored_by_flash_attn_s_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.support.checkpoints import edit_config

    plain = tmp_path / "plain"
    plain.mkdir()
    with blocking(RerankEngine.load(options(encoders.save(plain, "xlm-roberta", classifies=True)))) as engine:
        expected = [item.logit for item in engine("rerank", QUERY, texts()).items]
    folder = tmp_path / "jina-reranker-v2-base-multilingual"
    plain.rename(folder)
    found = {name.removeprefix("roberta."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    for index in range(3):
        at = f"encoder.layer.{index}"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{at}.attention.self.{name}.{kind}") for name in ("query", "key", "value")]
            found[f"{at}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    theirs = {
        "embeddings.LayerNorm": "emb_ln",
        "attention.output.dense": "mixer.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
        "encoder.layer.": "encoder.layers.",
    }
    for ours, other in theirs.items():
        found = {name.replace(ours, other): tensor for name, tensor in found.items()}
    assert not any("LayerNorm" in name for name in found)
    stem = {name: name if name.startswith("classifier") else f"roberta.{name}" for name in found}
    save_file({stem[name]: tensor for name, tensor in found.items()}, folder / "model.safetensors")
    edit_config(folder, auto_map={"AutoModelForSequenceClassification": "modeling_xlm_roberta.X"})
    with blocking(RerankEngine.load(options(folder))) as engine:
        assert [item.logit for item in engine("rerank", QUERY, texts()).items] == expected
    folder.rename(tmp_path / "another")
    with pytest.raises(CheckpointError, match="auto_map"):
        RerankEngine.load(options(tmp_path / "another"))
