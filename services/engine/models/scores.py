"""What a cross-encoder's scores are: probabilities or logits."""

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.sentence_transformers import Described
from services.engine.errors import CheckpointError
from services.engine.models.recipes import Recipe
from services.engine.types import Score

_SCORES = {
    None: Score.PROBABILITY,  # what sentence-transformers does with one label
    "torch.nn.modules.activation.Sigmoid": Score.PROBABILITY,
    "torch.nn.modules.linear.Identity": Score.LOGIT,
    "torch.nn.modules.linear.Identity()": Score.LOGIT,
}


def score_of(checkpoint: Checkpoint, described: Described, recipe: Recipe | None) -> Score:
    """What the model's scores are: what its recipe says, or the function that sentence-transformers applies."""
    if recipe is not None and recipe.score is not None:
        return recipe.score
    named = checkpoint.raw_config.get("sentence_transformers")
    applied = (
        described.settings.get("activation_fn")
        or (named.get("activation_fn") if isinstance(named, dict) else None)
        or checkpoint.raw_config.get("sbert_ce_default_activation_function")
    )
    if applied not in _SCORES:
        raise CheckpointError(f"{checkpoint.name}: the scores' activation_fn = {applied!r} is not served")
    return _SCORES[applied]
