"""The model families, by the `model_type` of config.json. The one module that names them all."""

from collections.abc import Callable, Mapping

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.folder import refuse_placeholder
from services.engine.checkpoint.refusals import refuse_quantised
from services.engine.errors import CheckpointError
from services.engine.models.base import Family
from services.engine.models.encoder.family import EncoderFamily
from services.engine.models.qwen2.family import Qwen2Family
from services.engine.models.qwen3.family import Qwen3Family

Families = Mapping[str, Callable[[Checkpoint], Family]]

FAMILIES: Families = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), EncoderFamily),
    "qwen2": Qwen2Family,
    "qwen3": Qwen3Family,
}


def family_of(checkpoint: Checkpoint, families: Families) -> Family:
    """The checkpoint as its family reads it. Raises CheckpointError if none does, or if it is unsound."""
    model_type = checkpoint.raw_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in families:
        served = ", ".join(map(repr, families))
        raise CheckpointError(f"config.json: model_type is {model_type!r}; only these are served: {served}")
    refuse_quantised(checkpoint)
    refuse_placeholder(checkpoint.tokenizer_file)  # at once, as weights take longer to read
    return families[model_type](checkpoint)
