"""Winnow, sentence-transformers and the recipe load one random encoder, and agree."""

from pathlib import Path

import numpy as np
import pytest

from bench.checkpoints import Choice, prepare
from bench.rerank import write_requests
from bench.shapes import SHAPES, Role
from bench.subjects.encoder_recipe import EncoderEmbedder, EncoderReranker
from bench.subjects.sentence_transformers import SentenceTransformersEmbedder, SentenceTransformersReranker
from bench.subjects.start import EMBEDDERS, RERANKERS, fitting
from bench.subjects.winnow import WinnowEmbedder, WinnowReranker
from bench.texts import Writer


def folder_of(shape: str, role: Role, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shape with two layers of a few thousand weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "initializer_range": 0.2}
    monkeypatch.setitem(SHAPES, shape, SHAPES[shape] | sizes)
    return prepare(Choice(shape, 2, cache=cache), role)


@pytest.mark.parametrize("shape", ["minilm", "bge-m3"])
def test_embedders_agree(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(shape, "embed", tmp_path, monkeypatch)
    writer = Writer(0)
    texts = [writer.of_words(length) for length in (3, 20, 60, 400)]  # MiniLM reads 256 tokens
    winnow = WinnowEmbedder(folder, "cpu", None)
    subjects = EncoderEmbedder(folder, "cpu", None), SentenceTransformersEmbedder(folder, "cpu", None), winnow
    assert [subject.format for subject in subjects] == ["float32"] * 3
    expected, *others = [subject.embed(texts, True, 3) for subject in subjects]
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert winnow.computed.texts == len(texts)
    winnow.close()


def test_rerankers_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("bge-reranker", "rerank", tmp_path, monkeypatch)
    requests = write_requests(2, 4)
    winnow = WinnowReranker(folder, "cpu", None)
    subjects = EncoderReranker(folder, "cpu", None), SentenceTransformersReranker(folder, "cpu", None), winnow
    expected, *others = [subject.rerank(requests, 3) for subject in subjects]
    assert np.ptp(expected) > 1e-3
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    winnow.close()


def test_the_recipe_is_that_of_the_models_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = folder_of("minilm", "embed", tmp_path, monkeypatch)
    assert fitting(EMBEDDERS, encoder)["recipe"].endswith(":EncoderEmbedder")
    assert "sentence-transformers-onnx" not in fitting(EMBEDDERS, encoder)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert fitting(RERANKERS, tmp_path) is RERANKERS
