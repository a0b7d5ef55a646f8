"""The model families, by the `model_type` of config.json."""

from collections.abc import Callable

import torch

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.models.base import Model
from services.engine.models.qwen3.build import prepare as qwen3

Prepare = Callable[[Checkpoint, torch.device, torch.dtype], Callable[[int], Model]]
"""`prepare(checkpoint, device, dtype)(max_tokens) -> Model`; both raise CheckpointError."""

FAMILIES: dict[str, Prepare] = {"qwen3": qwen3}


def prepare(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Callable[[int], Model]:
    """See Prepare, for the family of this checkpoint."""
    return FAMILIES[checkpoint.raw_config["model_type"]](checkpoint, device, dtype)
