"""The seam for a model family: one that nothing in the engine knows is loaded, checked, batched and served."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.tensors import Tensors, Usage
from services.engine.engine import EmbedEngine
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling, pool
from services.engine.load import Loaded, load
from services.engine.models.base import Config, Head, ModelInput, unit_vectors
from services.engine.models.qwen3.family import Qwen3Family
from services.engine.models.registry import FAMILIES, family_of
from services.engine.text.ends import Pause
from services.engine.text.prompts import Prompt, RerankTemplate, encode_each, never
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Capabilities, EngineSettings, Failure, Ids, InputType, Score, Truncation
from tests.support.checkpoints import tokenizer
from tests.unit.engine.conftest import blocking

WIDTH = 16
CAPABILITIES = Capabilities(
    input_types=(InputType.DOCUMENT, InputType.QUERY), instructions=False, sliced=False, score=Score.LOGIT
)


class Mean:
    """A text's vector is the mean of its tokens' rows."""

    hidden_size = WIDTH

    def __init__(self, table: torch.Tensor, causal: bool, pooling: Pooling) -> None:
        self._table, self.causal, self.pooling = table, causal, pooling

    def compiled(self) -> Self:
        return self

    @torch.inference_mode()
    def __call__(self, batch: ModelInput) -> torch.Tensor:
        rows = self._table[batch.ids].unsqueeze(1)
        nothing = torch.zeros_like(rows)  # all keys alike: attention weighs them equally
        means = batch.attend_wanted(nothing[batch.wanted_rows], nothing, rows).flatten(1)
        return pool(means, batch.starts, self.pooling)


class RawPrompts:
    """The text and nothing else."""

    def __init__(self, words: Tokenizer) -> None:
        self._words = words

    def build(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType,
        instruction: str | None,
        truncation: Truncation,
        max_tokens: int,
        pause: Pause = never,
    ) -> list[Prompt | Failure]:
        def finish(index: int, ids: Ids) -> Prompt | Failure:
            return Prompt(ids[:max_tokens], truncated=len(ids) > max_tokens)

        return encode_each(self._words, "texts", texts, "", finish, max_tokens, 0, pause)


class MeanFamily:
    default_instruction, template_version, head_name = "none", "raw-1", "mean"
    capabilities_, causal, pooling = CAPABILITIES, True, Pooling.LAST

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = Config(vocab_size=checkpoint.raw_config["rows"], hidden_size=WIDTH, max_position_embeddings=4096)
        unused = {"table": None}
        self.tensors = Tensors(
            checkpoint.name, checkpoint.folder, Usage(re.compile("position"), lambda name: unused.get(name, "is odd"))
        )

    def capabilities(self, *, embeds: bool) -> Capabilities:
        return self.capabilities_

    def check(self, words: Tokenizer, *, embeds: bool) -> None:
        if not embeds:
            raise CheckpointError("makes no scores")

    def embed_prompts(self, words: Tokenizer) -> RawPrompts:
        return RawPrompts(words)

    def rerank_prompts(self, words: Tokenizer) -> RerankTemplate:
        raise CheckpointError("makes no scores")

    def head(self, words: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        return self.head_name, unit_vectors

    def sample(self) -> torch.Tensor:
        return self.tensors("table", (self.config.vocab_size, WIDTH))

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Mean]:
        table = self.tensors("table", (self.config.vocab_size, WIDTH)).to(device, dtype)
        return lambda max_tokens: Mean(table, self.causal, self.pooling)


def start(folder: Path, family: type[MeanFamily]) -> Loaded:
    families: Mapping[str, Callable[[Checkpoint], Any]] = {**FAMILIES, "mean": family}
    return load(EngineSettings(str(folder), max_tokens=64, threads=1), embeds=True, families=families)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = tokenizer()
    words.save(str(tmp_path / "tokenizer.json"))
    rows = words.get_vocab_size()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mean", "rows": rows}))
    table = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"table": table, "position": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_family_that_the_engine_does_not_know_is_served(folder: Path) -> None:
    loaded = start(folder, MeanFamily)
    texts = ["gravity is a force", "gravity is a body", "passages", "gravity is a force that attracts"]
    with blocking(EmbedEngine(loaded, 1)) as embed:
        items = embed("embed", texts).items
    table = MeanFamily(Checkpoint.open(str(folder))).tensors("table", (loaded.tokenizer.rows, WIDTH))
    for item, ids in zip(items, loaded.tokenizer.encode(texts), strict=True):
        mean = table[torch.from_numpy(ids).long()].mean(dim=0)
        np.testing.assert_allclose(item.vector, (mean / mean.norm()).numpy(), atol=1e-6)
    assert loaded.info.default_instruction == "none"
    assert loaded.info.template_version == "raw-1"
    assert loaded.info.capabilities is CAPABILITIES


@pytest.mark.parametrize("pooling", Pooling)
def test_how_a_model_sees_and_pools_is_its_own(folder: Path, pooling: Pooling) -> None:
    """Each token sees the whole text, so any of them, and their mean, is the same vector."""
    family: type[MeanFamily] = type("Other", (MeanFamily,), {"causal": False, "pooling": pooling})
    texts = ["gravity is a force", "gravity is a body", "gravity is a force"]
    rows = []
    for kind in (MeanFamily, family):
        with blocking(EmbedEngine(start(folder, kind), 1)) as embed:
            rows.append(np.stack([item.vector for item in embed("embed", texts).items]))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)


CHANGES: list[dict[str, Any]] = [
    {"template_version": "raw-2"},
    {"head_name": "other"},
    {"causal": False},
    {"causal": False, "pooling": Pooling.FIRST},
    {"causal": False, "pooling": Pooling.MEAN},
]


def test_all_that_changes_a_result_changes_the_fingerprint(folder: Path) -> None:
    """Prompts, head, attention and pooling: each of them alone, whichever file or recipe says it."""
    families = [MeanFamily, *(type("Other", (MeanFamily,), changed) for changed in CHANGES)]
    loaded = [start(folder, family) for family in families]
    for one in loaded:
        one.runner.close()
    assert len({one.info.fingerprint for one in loaded}) == len(families)
    assert len({one.info.weights_digest for one in loaded}) == 1
    again = start(folder, MeanFamily)
    again.runner.close()
    assert again.info.fingerprint == loaded[0].info.fingerprint


def test_what_a_score_is_changes_the_fingerprint(checkpoints: Callable[..., Path]) -> None:
    class Logits(Qwen3Family):
        def capabilities(self, *, embeds: bool) -> Capabilities:
            return replace(super().capabilities(embeds=embeds), score=Score.LOGIT)

    settings = EngineSettings(str(checkpoints()), max_tokens=256, threads=1)

    def fingerprints(embeds: bool) -> set[str]:
        loaded = [load(settings, embeds=embeds, families={"qwen3": kind}) for kind in (Qwen3Family, Logits)]
        for one in loaded:
            one.runner.close()
        return {one.info.fingerprint for one in loaded}

    assert len(fingerprints(embeds=False)) == 2
    assert len(fingerprints(embeds=True)) == 1


def test_a_tensor_that_a_family_does_not_use_is_refused_in_its_words(folder: Path) -> None:
    save_file({"table": torch.ones(3, WIDTH), "bias": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor bias is odd"):
        MeanFamily(Checkpoint.open(str(folder)))


@pytest.mark.parametrize("model_type", ["llama", None, ["qwen3"]])
def test_a_model_of_no_family_is_refused_by_its_type(folder: Path, model_type: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    expected = re.escape(f"model_type is {model_type!r}; only these are served: {', '.join(map(repr, FAMILIES))}")
    with pytest.raises(CheckpointError, match=expected):
        family_of(Checkpoint.open(str(folder)), FAMILIES)
    with pytest.raises(CheckpointError, match="model_type is"):
        EmbedEngine.load(EngineSettings(str(folder)))
