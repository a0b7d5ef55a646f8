"""The reranker's head: from the last token's hidden state to a logit."""

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
    column = weight.to(device).unsqueeze(1)
    return lambda hidden: hidden @ column
