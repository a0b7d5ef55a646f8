"""Checkpoints that no family serves: quantised ones, and those that need code of their own.

Adapters without their base are refused by `folder`, tensors of quantised weights by `tensors`.
"""

from collections.abc import Mapping

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.sentence_transformers import optional_json
from services.engine.errors import CheckpointError


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for weights that are not plain floats."""
    for key in ("quantization_config", "compression_config"):
        if how := checkpoint.raw_config.get(key):
            raise CheckpointError(
                f"{checkpoint.name}: config.json: {key}: the weights are quantised ({_method(how)}), which is not"
                " served; give the checkpoint as it was before, in bfloat16, float16 or float32"
            )
    if files := sorted(path.name for path in checkpoint.folder.glob("*quant*_config.json")):
        raise CheckpointError(
            f"{checkpoint.name}: {files[0]}: quantised checkpoints are not served; give the original one"
        )


def refuse_own_code(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a model or a tokenizer that is computed by code of its own."""
    if code := checkpoint.raw_config.get("auto_map"):
        raise CheckpointError(
            f"{checkpoint.name}: config.json: auto_map = {code!r}: the model needs code of its own, which is never run"
        )
    refuse_own_tokenizer(checkpoint)


def refuse_own_tokenizer(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a tokenizer that has code of its own."""
    if optional_json(checkpoint.folder / "tokenizer_config.json").get("auto_map"):
        raise CheckpointError(f"{checkpoint.name}: tokenizer_config.json: auto_map: its own code is never run")


def _method(how: object) -> str:
    """What a quantization_config says, in words."""
    if not isinstance(how, Mapping):
        return repr(how)
    method = str(how.get("quant_method") or how.get("quantization_method") or how.get("quant_algo") or "unknown method")
    bits = 4 if how.get("load_in_4bit") else 8 if how.get("load_in_8bit") else how.get("bits")
    name = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}.get(method, method)
    return f"{name}, {bits} bits" if bits else name
