"""The number format of a model on a device: what the settings name, else what is fastest and true to the checkpoint."""

import logging

import torch

from services.engine.errors import CheckpointError
from services.engine.layers.linear import gain, has_int8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}

# So much faster its products have to be for bfloat16 to be chosen on a CPU. It costs digits, and a gain so large is a
# processor's matrix unit, not noise: replicas on equal machines choose alike.
_GAIN = 2.0

log = logging.getLogger("winnow.engine")


def parse(name: str) -> torch.dtype | None:
    """The format of that name; None for auto. Raises CheckpointError for any other."""
    if name == "auto":
        return None
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is unknown: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose(named: torch.dtype | None, device: torch.device, sample: torch.Tensor) -> torch.dtype:
    """`sample`: a weight as stored, `[out, in]`. Blocking: on the CPU it is multiplied, for some tenths of a second.

    Raises CheckpointError for a format that the device cannot compute in.
    """
    if device.type == "cpu":
        return _on_cpu(named, sample)
    if named == torch.int8:
        raise CheckpointError("dtype int8: int8 is computed on the CPU only; set bfloat16, float16 or auto")
    if named == torch.float32:
        raise CheckpointError("dtype float32: attention on CUDA computes in 16 bits; set bfloat16, float16 or auto")
    if named is None:
        named = sample.dtype if sample.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
        if named != sample.dtype:
            log.warning("the checkpoint holds %s; its weights are rounded to %s", _name(sample.dtype), _name(named))
    return named


def _on_cpu(named: torch.dtype | None, sample: torch.Tensor) -> torch.dtype:
    if named == torch.float32 or (named is None and sample.dtype != torch.bfloat16):
        return torch.float32
    if named == torch.int8 and not has_int8():
        raise CheckpointError("dtype int8: this processor has no exact int8 products; set float32, bfloat16 or auto")
    factor = gain(sample, named or torch.bfloat16)
    if named is None:
        chosen = torch.bfloat16 if factor >= _GAIN else torch.float32
        log.info("products in bfloat16 are %.1f times as fast here as in float32: %s", factor, _name(chosen))
        return chosen
    if factor < 1:
        log.warning("%s is %.1f times as fast here as float32; auto would choose float32", _name(named), factor)
    return named


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
