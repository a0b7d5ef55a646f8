"""The recipes on the cards of all-MiniLM-L6-v2, bge-m3 and bge-reranker-v2-m3 (Apache-2.0, MIT, Apache-2.0).

The cards pad all texts of a call to the longest and let transformers choose the number format.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bench.flops import pools_all
from bench.folders import query_prompt
from bench.subjects import Computed, Requests, Scores, Vectors
from bench.subjects.recipe import asked, name_of
from services.engine.checkpoint.sentence_transformers import longest_text


class _Encoder:
    """A model of transformers with its tokenizer."""

    def __init__(self, loader: Any, folder: Path, device: str, format: str | None) -> None:
        self.computed = Computed()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = loader.from_pretrained(folder, **asked(format)).to(device).eval()
        self._tokens = longest_text(folder) or self._model.config.max_position_embeddings
        self.format = name_of(self._model.dtype)

    def _inputs(self, *texts: list[str]) -> Any:
        batch = self._tokenizer(*texts, padding=True, truncation=True, max_length=self._tokens, return_tensors="pt")
        return batch.to(self._model.device)

    def close(self) -> None:
        """See `Model`."""


class EncoderEmbedder(_Encoder):
    """One padded batch of `batch_size` texts after the other: the mean of all tokens, or the first one."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        super().__init__(AutoModel, folder, device, format)
        self._mean, self._prompt = pools_all(folder), query_prompt(folder)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        asked = [self._prompt + text if queries else text for text in texts]
        return np.concatenate([self._batch(asked[at : at + batch_size]) for at in range(0, len(asked), batch_size)])

    def _batch(self, texts: list[str]) -> Vectors:
        batch = self._inputs(texts)
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9) if self._mean else hidden[:, 0]
        unit: Vectors = F.normalize(pooled, p=2, dim=1).float().cpu().numpy()
        return unit


class EncoderReranker(_Encoder):
    """One padded batch per query (or `batch_size` pairs of it); the sigmoid of each pair's only logit."""

    def __init__(self, folder: Path, device: str, format: str | None) -> None:
        super().__init__(AutoModelForSequenceClassification, folder, device, format)

    @torch.no_grad()
    def rerank(self, requests: Requests, batch_size: int) -> Scores:
        """See `Model`."""
        scores: list[float] = []
        for query, documents in requests:
            for at in range(0, len(documents), batch_size):
                batch = list(documents[at : at + batch_size])
                logits = self._model(**self._inputs([query] * len(batch), batch)).logits.view(-1).float()
                scores += logits.sigmoid().tolist()
        return np.array(scores)
