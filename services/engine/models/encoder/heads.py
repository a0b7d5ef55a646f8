"""The head of a cross-encoder: from the first token's state to a logit."""

import torch

from services.engine.checkpoint.tensors import Tensors
from services.engine.models.base import Head
from services.engine.models.encoder.config import EncoderConfig

# The names of a dense layer before tanh, and of the score's row.
_NAMES = {
    "bert": ("pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
}


def classifier(config: EncoderConfig, tensors: Tensors, device: torch.device) -> Head:
    """`[E, 1]`, in fp32: transformers' `BertForSequenceClassification`, `RobertaClassificationHead` without dropout."""
    dense, out = _NAMES[config.model_type]
    width = config.hidden_size

    def both(name: str, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = tensors(f"{name}.weight", (rows, width)).to(device, torch.float32)
        return weight, tensors(f"{name}.bias", (rows,), may_be_zero=True).to(device, torch.float32)

    (inner, inner_bias), (score, score_bias) = both(dense, width), both(out, 1)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        inside = torch.tanh(torch.addmm(inner_bias, hidden, inner.T))
        return torch.addmm(score_bias, inside, score.T)

    return head
