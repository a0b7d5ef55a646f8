"""The seam for a model family: one that nothing in the engine knows is loaded, checked, batched and served."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
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
from services.engine.layers.pooling import Pooling
from services.engine.load import load
from services.engine.models.base import Config, Head, ModelInput, unit_vectors
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
    causal, pooling = True, Pooling.LAST

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    def compiled(self) -> Self:
        return self

    @torch.inference_mode()
    def __call__(self, batch: ModelInput) -> torch.Tensor:
        rows = self._table[batch.ids].unsqueeze(1)
        nothing = torch.zeros_like(rows)  # all keys alike: attention weighs them equally
        return batch.attend_wanted(nothing[batch.wanted_rows], nothing, rows).flatten(1)


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
    default_instruction, template_version = "none", "raw-1"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = Config(vocab_size=checkpoint.raw_config["rows"], hidden_size=WIDTH, max_position_embeddings=4096)
        unused = {"table": None}
        self.tensors = Tensors(
            checkpoint.name, checkpoint.folder, Usage(re.compile("position"), lambda name: unused.get(name, "is odd"))
        )

    def capabilities(self, *, embeds: bool) -> Capabilities:
        return CAPABILITIES

    def check(self, words: Tokenizer, *, embeds: bool) -> None:
        if not embeds:
            raise CheckpointError("makes no scores")

    def embed_prompts(self, words: Tokenizer) -> RawPrompts:
        return RawPrompts(words)

    def rerank_prompts(self, words: Tokenizer) -> RerankTemplate:
        raise CheckpointError("makes no scores")

    def head(self, words: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        return "mean", unit_vectors

    def sample(self) -> torch.Tensor:
        return self.tensors("table", (self.config.vocab_size, WIDTH))

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Mean]:
        return lambda max_tokens: Mean(self.tensors("table", (self.config.vocab_size, WIDTH)).to(device, dtype))


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
    families: Mapping[str, Callable[[Checkpoint], Any]] = {**FAMILIES, "mean": MeanFamily}
    settings = EngineSettings(str(folder), max_tokens=64, threads=1)
    loaded = load(settings, embeds=True, families=families)
    texts = ["gravity is a force", "gravity is a body", "passages", "gravity is a force that attracts"]
    with blocking(EmbedEngine(loaded, settings.tokenizer_threads)) as embed:
        items = embed("embed", texts).items
    table = MeanFamily(Checkpoint.open(str(folder))).tensors("table", (loaded.tokenizer.rows, WIDTH))
    for item, ids in zip(items, loaded.tokenizer.encode(texts), strict=True):
        mean = table[torch.from_numpy(ids).long()].mean(dim=0)
        np.testing.assert_allclose(item.vector, (mean / mean.norm()).numpy(), atol=1e-6)
    assert loaded.info.default_instruction == "none"
    assert loaded.info.template_version == "raw-1"
    assert loaded.info.capabilities is CAPABILITIES


def test_a_tensor_that_a_family_does_not_use_is_refused_in_its_words(folder: Path) -> None:
    save_file({"table": torch.ones(3, WIDTH), "bias": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="tensor bias is odd"):
        MeanFamily(Checkpoint.open(str(folder)))


@pytest.mark.parametrize("model_type", ["bert", None, ["qwen3"]])
def test_a_model_of_no_family_is_refused_by_its_type(folder: Path, model_type: object) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError, match=re.escape(f"model_type is {model_type!r}; only 'qwen3' can be served")):
        family_of(Checkpoint.open(str(folder)), FAMILIES)
    with pytest.raises(CheckpointError, match="model_type is"):
        EmbedEngine.load(EngineSettings(str(folder)))
