"""The model cards' own recipe in transformers: one left-padded batch, the reference every parity test compares with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


class Recipe:
    """Runs a checkpoint folder through transformers in fp32."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.folder, self.max_tokens = folder, max_tokens
        end = self.tokenizer.token_to_id("<|endoftext|>")
        assert end is not None
        self.end = end

    def embed(self, texts: Sequence[str], dimensions: int | None = None) -> np.ndarray:
        """Unit vectors `[n, dimensions]` of texts as they stand."""
        from transformers import Qwen3Model

        model = Qwen3Model.from_pretrained(self.folder, dtype=torch.float32).eval()
        rows = [[*self.ids(text)[: self.max_tokens - 1], self.end] for text in texts]
        with torch.no_grad():
            pooled = model(**self._left_padded(rows)).last_hidden_state[:, -1]
        return F.normalize(pooled[:, :dimensions], dim=-1).numpy()

    def rerank(self, query: str, documents: Sequence[str], task: str = TASK) -> np.ndarray:
        """P(yes) `[n]` by log_softmax over the whole vocabulary's "no" and "yes"."""
        from transformers import Qwen3ForCausalLM

        model = Qwen3ForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        prefix, suffix = self.ids(RERANK_PREFIX), self.ids(RERANK_SUFFIX)
        room = self.max_tokens - len(prefix) - len(suffix)
        bodies = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for document in documents]
        rows = [prefix + self.ids(body)[:room] + suffix for body in bodies]
        (yes,), (no,) = self.ids("yes"), self.ids("no")
        with torch.no_grad():
            logits = model(**self._left_padded(rows)).logits[:, -1]
        return torch.stack([logits[:, no], logits[:, yes]], 1).log_softmax(1)[:, 1].exp().numpy()

    def ids(self, text: str) -> list[int]:
        """Tokens without any added at the end; control tokens in the text count as such."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([[self.end] * (width - len(row)) + list(row) for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        }
