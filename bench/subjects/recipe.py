"""The recipes of the Qwen3 model cards (Apache-2.0), line by line, except for gradients, which one card leaves enabled.

The cards pad all texts of a call to the longest, on the left, and let transformers choose the number format.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from bench.subjects import Computed, Requests, Scores, Vectors
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, RERANK_PREFIX, RERANK_SUFFIX

_MAX_LENGTH = 8192


def asked(format: str | None) -> dict[str, torch.dtype]:
    """What transformers is told of the number format: nothing at all if it is to choose itself."""
    return {"dtype": getattr(torch, format)} if format else {}


def name_of(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


class RecipeEmbedder:
    """One padded batch of `batch_size` texts after the other."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        self.computed = Computed()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model: Any = AutoModel.from_pretrained(folder, **asked(format))
        self._model = model.to(device).eval()
        self.format = name_of(self._model.dtype)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        inputs = [f"Instruct: {DEFAULT_INSTRUCTION}\nQuery:{text}" if queries else text for text in texts]
        batches = [inputs[at : at + batch_size] for at in range(0, len(inputs), batch_size)]
        return np.concatenate([self._batch(batch) for batch in batches])

    def _batch(self, texts: list[str]) -> Vectors:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt")
        batch.to(self._model.device)
        outputs = self._model(**batch)
        embeddings = _last_token_pool(outputs.last_hidden_state, batch["attention_mask"])
        unit: Vectors = F.normalize(embeddings, p=2, dim=1).float().cpu().numpy()
        return unit

    def close(self) -> None:
        """See `Model`."""


class RecipeReranker:
    """One padded batch per query (or `batch_size` pairs of it), with logits of the full vocabulary at each position."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        self.computed = Computed()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **asked(format))
        self._model = model.to(device).eval()
        self.format = name_of(self._model.dtype)
        self._no = self._tokenizer.convert_tokens_to_ids("no")
        self._yes = self._tokenizer.convert_tokens_to_ids("yes")
        self._prefix = self._tokenizer.encode(RERANK_PREFIX, add_special_tokens=False)
        self._suffix = self._tokenizer.encode(RERANK_SUFFIX, add_special_tokens=False)

    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """See `Model`."""
        scores: list[float] = []
        for query, documents in requests:
            pairs = [
                f"<Instruct>: {DEFAULT_INSTRUCTION}\n<Query>: {query}\n<Document>: {document}" for document in documents
            ]
            for at in range(0, len(pairs), batch_size):
                scores += self._compute_logits(self._process_inputs(pairs[at : at + batch_size]))
        return np.array(scores)

    def _process_inputs(self, pairs: list[str]) -> Any:
        inputs = self._tokenizer(
            pairs, padding=False, truncation="longest_first", return_attention_mask=False,
            max_length=_MAX_LENGTH - len(self._prefix) - len(self._suffix),
        )  # fmt: skip
        for index, ids in enumerate(inputs["input_ids"]):
            inputs["input_ids"][index] = self._prefix + ids + self._suffix
        inputs = self._tokenizer.pad(inputs, padding=True, return_tensors="pt")
        return {key: value.to(self._model.device) for key, value in inputs.items()}

    @torch.no_grad()
    def _compute_logits(self, inputs: Any) -> list[float]:
        batch_scores = self._model(**inputs).logits[:, -1, :]
        batch_scores = torch.stack([batch_scores[:, self._no], batch_scores[:, self._yes]], dim=1)
        batch_scores = F.log_softmax(batch_scores, dim=1)
        scores: list[float] = batch_scores[:, 1].exp().tolist()
        return scores

    def close(self) -> None:
        """See `Model`."""


def _last_token_pool(last_hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    if attention_mask[:, -1].sum() == attention_mask.shape[0]:  # padded on the left
        return last_hidden_states[:, -1]
    rows = torch.arange(last_hidden_states.shape[0], device=last_hidden_states.device)
    return last_hidden_states[rows, attention_mask.sum(dim=1) - 1]
