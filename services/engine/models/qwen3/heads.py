"""A reranker's head: from the last token's hidden state to a logit."""

from collections.abc import Mapping
from typing import Any

import torch

from services.engine.checkpoint.tensors import Tensors
from services.engine.errors import CheckpointError
from services.engine.models.base import Head
from services.engine.models.qwen3.config import ModelConfig


def yes_no(config: ModelConfig, tensors: Tensors, yes_id: int, no_id: int, device: torch.device) -> Head:
    """logit(yes) - logit(no), `[E, 1]`: two rows of the language-model head as one fp32 vector, never the whole head.

    config.json says whether the head is the embedding's own table (0.6B, 4B) or a tensor of its own (8B). A tied one
    may be stored a second time, but not with other values.
    """
    if max(yes_id, no_id) >= config.vocab_size:
        raise CheckpointError("tokenizer.json: 'yes' or 'no' lies outside the model's vocabulary")
    name = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    rows = tensors(name, (config.vocab_size, config.hidden_size))[[yes_id, no_id]].float()
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        own = tensors("lm_head.weight", (config.vocab_size, config.hidden_size))[[yes_id, no_id]].float()
        if not torch.equal(own, rows):
            raise CheckpointError(
                f"{tensors.name}: config.json: tie_word_embeddings is true, but lm_head.weight is stored and differs"
                " from embed_tokens.weight; set it to false if the head was trained, else remove lm_head.weight"
            )
    weight = rows[0] - rows[1]
    if not weight.any():
        raise CheckpointError(f"{tensors.name}: the rows of {name} for 'yes' and 'no' are equal")
    return _onto(weight, device)


def classifier(config: ModelConfig, raw: Mapping[str, Any], tensors: Tensors, device: torch.device) -> tuple[str, Head]:
    """The logit of a repack that has a classification head, `[E, 1]`: of one label, or logit(yes) - logit(no) of two.
    And its name in the fingerprint.

    Sources: vLLM's conversion of Qwen3-Reranker (convert_model_to_seq_cls.py), tomaarsen/Qwen3-Reranker-0.6B-seq-cls.
    """
    labels = labels_of(raw)
    rows = tensors("score.weight", (len(labels), config.hidden_size)).float()
    if len(labels) == 1:
        return "classification", _onto(rows[0], device)
    if sorted(labels) != ["no", "yes"]:
        raise CheckpointError(
            f"{tensors.name}: config.json: id2label = {raw.get('id2label')!r}: a reranker has one label, or the two"
            " 'yes' and 'no'; set it so if these are what its scores mean"
        )
    yes, no = labels.index("yes"), labels.index("no")
    return f"classification, row {yes} over row {no}", _onto(rows[yes] - rows[no], device)


def labels_of(raw: Mapping[str, Any]) -> list[str]:
    """The labels by their rows, as transformers reads them: two without names if config.json has none."""
    named = raw.get("id2label")
    if isinstance(named, Mapping) and all(str(row).isdecimal() for row in named):
        return [str(named[row]).strip().lower() for row in sorted(named, key=int)]
    return [f"label_{row}" for row in range(int(raw.get("num_labels") or 2))]


def _onto(weight: torch.Tensor, device: torch.device) -> Head:
    """The product of each state and fp32 `[hidden]`."""
    column = weight.to(device).unsqueeze(1)
    return lambda hidden: hidden @ column
