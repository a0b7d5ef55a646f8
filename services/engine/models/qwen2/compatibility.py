"""What a Qwen2's config.json does not say by itself: which tokens one sees, and what ends a text.

Such models were made by changing the mask of a language model, in code of their own that is never run. A wrong mask or
a lost end token makes vectors that look sound and are not, so neither is guessed.
"""

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.refusals import refuse_own_tokenizer
from services.engine.checkpoint.sentence_transformers import optional_json
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling
from services.engine.models.modules import Modules
from services.engine.models.recipes import Recipe
from services.engine.text.tokenizer import Tokenizer

_MASK = (
    '"is_causal": false if each token sees the whole text, true if it sees only those before it; the model\'s card, or'
    " the code that auto_map names, says which"
)


def causal(checkpoint: Checkpoint, recipe: Recipe | None) -> bool:
    """Whether a token sees only those before it: what config.json says, else what the recipe says."""
    said = checkpoint.raw_config.get("is_causal")
    if said is None and recipe is not None:
        said = recipe.causal
    if not isinstance(said, bool) or checkpoint.raw_config.get("use_bidirectional_attention"):
        raise CheckpointError(f"{checkpoint.name}: config.json: does not say what a token sees; set {_MASK}")
    return said


def pooling(checkpoint: Checkpoint, modules: Modules, recipe: Recipe | None) -> Pooling:
    """What the folder says, else what the recipe says."""
    said = modules.pooling or (recipe.pooling if recipe else None)
    if said is None:
        raise CheckpointError(
            f"{checkpoint.name}: modules.json is missing, so nothing says which tokens make a vector; save the model by"
            " sentence-transformers, or add modules.json and 1_Pooling/config.json"
        )
    if said is Pooling.FIRST:
        raise CheckpointError(f"{checkpoint.name}: 1_Pooling/config.json: pooling by cls is not served for a decoder")
    return said


def check_text(checkpoint: Checkpoint, tokenizer: Tokenizer, pooling: Pooling, recipe: Recipe | None) -> None:
    """Raises CheckpointError if a text would not be read, or would not end, as in the model's training.

    transformers drops `add_eos_token` without a word if there is a tokenizer.json, which then decides alone.
    """
    name, folder = checkpoint.name, checkpoint.folder
    if optional_json(folder / "sentence_bert_config.json").get("do_lower_case"):
        raise CheckpointError(f"{name}: sentence_bert_config.json: do_lower_case is not supported")
    if recipe is not None and recipe.end is not None:
        return
    refuse_own_tokenizer(checkpoint)
    adds_end = optional_json(folder / "tokenizer_config.json").get("add_eos_token")
    _, after = tokenizer.framed()
    if len(after) or (pooling is not Pooling.LAST and not adds_end):
        return
    why = "tokenizer_config.json says add_eos_token" if adds_end else "the last token's state is the vector"
    raise CheckpointError(
        f"{name}: tokenizer.json: its post_processor adds no token after a text, but {why}; let it add the"
        " one that the model was trained with"
    )
