import argparse
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.checkpoints import CACHE, Choice, ModelMissingError, add_arguments, choice, named, prepare
from bench.shapes import SHAPES
from services.engine.engine import RerankEngine
from services.engine.types import EngineSettings
from tests.support import checkpoints


def parsed(*words: str) -> Choice:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return choice(parser.parse_args(words))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    checkpoints.tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def test_names_of_models() -> None:
    assert parsed() == Choice("0.6b", None, None, CACHE)
    assert parsed("--model", "0.6b-4layers") == Choice("0.6b", 4)
    assert parsed("--layers", "2") == Choice("0.6b", 2)
    assert parsed("--model", "nano") == Choice("nano")
    assert parsed("--model", "some/folder-4layers") == Choice("some/folder-4layers")
    assert named("0.6b-4layers") == Choice("0.6b", 4)
    assert named("bge-m3-2layers") == Choice("bge-m3", 2)


def test_random_weights_come_from_the_seed_and_are_written_once(tmp_path: Path, tokenizer: Path) -> None:
    first = prepare(Choice("tiny", 1, tokenizer, tmp_path / "a"), "embed")
    second = prepare(Choice("tiny", 1, tokenizer, tmp_path / "b"), "embed")
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
    weights = (first / "model.safetensors").resolve()
    written = weights.stat().st_mtime_ns
    reranker = prepare(Choice("tiny", 1, tokenizer, tmp_path / "a"), "rerank")
    assert (reranker / "model.safetensors").resolve() == weights
    assert weights.stat().st_mtime_ns == written


def test_a_head_that_is_not_tied_has_weights_of_its_own(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", SHAPES["tiny"] | {"tie_word_embeddings": False})
    folder = prepare(Choice("tiny", 1, tokenizer, tmp_path / "cache"), "rerank")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["lm_head.weight"].shape == tensors["model.embed_tokens.weight"].shape
    RerankEngine.load(EngineSettings(str(folder), device="cpu", threads=1)).close()


def test_a_folder_without_sentence_transformers_files_is_left_as_it_is(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "model")
    before = sorted(path.name for path in folder.iterdir())
    view = prepare(Choice(str(folder), cache=tmp_path / "cache"), "rerank")
    assert view != folder
    assert (view / "modules.json").is_file()
    assert (view / "model.safetensors").samefile(folder / "model.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == before


def small(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    """The shape, a few thousand weights in a layer."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | sizes)


@pytest.mark.parametrize(("shape", "pooling", "limit"), [("minilm", "mean", 256), ("bge-m3", "cls", 8192)])
def test_a_random_encoder_is_one_for_sentence_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, pooling: str, limit: int
) -> None:
    from sentence_transformers import SentenceTransformer

    small(monkeypatch, shape)
    folder = prepare(Choice(shape, 2, cache=tmp_path), "embed")
    model = SentenceTransformer(str(folder), device="cpu")
    assert model[1].pooling_mode == pooling
    assert model.max_seq_length == limit
    names = {name.removeprefix("0.model.") for name, _ in model.named_parameters()}
    assert names == load_file(folder / "model.safetensors").keys()


def test_a_random_classifier_is_one_for_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import CrossEncoder

    small(monkeypatch, "bge-reranker")
    folder = prepare(Choice("bge-reranker", 1, cache=tmp_path), "rerank")
    model = CrossEncoder(str(folder), device="cpu")
    assert model.num_labels == 1
    assert model.tokenizer("river", "sea").tokens() == ["<s>", "▁river", "</s>", "</s>", "▁", "s", "e", "a", "</s>"]
    weights = load_file(folder / "model.safetensors")
    assert {name for name, _ in model.model.named_parameters()} == weights.keys()


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="minilm is for `python -m bench embed`"):
        prepare(Choice("minilm", cache=tmp_path), "rerank")
    with pytest.raises(ModelMissingError, match="bge-reranker is for `python -m bench rerank`"):
        prepare(Choice("bge-reranker", cache=tmp_path), "embed")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match=r"tokenizer\.json is missing"):
        prepare(Choice("tiny", tokenizer=tmp_path, cache=tmp_path), "embed")
    with pytest.raises(ModelMissingError, match="no checkpoint"):
        prepare(Choice(str(tmp_path), cache=tmp_path), "embed")
