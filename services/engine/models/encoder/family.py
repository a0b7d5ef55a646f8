"""BERT, RoBERTa and XLM-RoBERTa: embedding models in sentence-transformers' layout, and cross-encoders.

See `Family`.
"""

from collections.abc import Callable
from functools import cached_property

import torch

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.refusals import refuse_own_code
from services.engine.checkpoint.sentence_transformers import Described
from services.engine.checkpoint.tensors import Tensors
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling
from services.engine.models.base import Head
from services.engine.models.encoder import compatibility
from services.engine.models.encoder.build import prepare
from services.engine.models.encoder.config import EncoderConfig
from services.engine.models.encoder.forward import Encoder
from services.engine.models.encoder.heads import classifier
from services.engine.models.encoder.weights import usage
from services.engine.models.modules import Modules
from services.engine.models.recipes import RECIPES, recipe_of
from services.engine.models.scores import score_of
from services.engine.models.wording import wording
from services.engine.text.pairs import PairPrompts
from services.engine.text.templates import PlainPrompts
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Capabilities, Score

# Its code computes what XLM-RoBERTa's does, by flash-attn.
_SAME_FORMULA = "jinaai/jina-reranker-v2-base-multilingual"


class EncoderFamily:
    """A checkpoint as an encoder."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError for anything that would be computed wrongly."""
        self._recipe = recipe_of(checkpoint.name)
        if self._recipe is None or self._recipe is not RECIPES.get(_SAME_FORMULA):
            refuse_own_code(checkpoint)
        self.config = EncoderConfig.parse(checkpoint.raw_config)
        self.tensors = Tensors(checkpoint.name, checkpoint.folder, usage(self.config))
        self._checkpoint, self._described = checkpoint, Described(checkpoint.folder)
        self._wording = wording(checkpoint.name, self._described, self._recipe)
        self.default_instruction = self._wording.instruction
        self.template_version = self._wording.version

    def capabilities(self, *, embeds: bool) -> Capabilities:
        """See Family."""
        if not embeds:
            score = score_of(self._checkpoint, self._described, self._recipe)
            return Capabilities(input_types=(), instructions=False, sliced=False, score=score)
        return Capabilities(
            input_types=self._wording.input_types,
            instructions=self._wording.instructions,
            sliced=False,
            score=Score.LOGIT,
        )

    def check(self, tokenizer: Tokenizer, *, embeds: bool) -> None:
        """See Family."""
        compatibility.check_text(self._checkpoint, tokenizer)
        if embeds:
            compatibility.check_embedder(self._checkpoint, self.config, self.tensors)
            self.embed_prompts(tokenizer).check()
            self._pooling()
        else:
            compatibility.check_reranker(self._checkpoint, self.config, self._described)
            self.rerank_prompts(tokenizer).check()
            self.capabilities(embeds=False)

    def embed_prompts(self, tokenizer: Tokenizer) -> PlainPrompts:
        """See Family."""
        return PlainPrompts(tokenizer, self._wording)

    def rerank_prompts(self, tokenizer: Tokenizer) -> PairPrompts:
        """See Family."""
        typed = compatibility.has_types(self._checkpoint, self.config)
        return PairPrompts(tokenizer, self.config.vocab_size if typed else 0)

    def head(self, tokenizer: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        """See Family."""
        if not embeds:
            return "classifier of the first token", classifier(self.config, self.tensors, device)
        name, head = self._modules.head(device)
        return f"{self._pooling().value}: {name}", head

    def sample(self) -> torch.Tensor:
        """See Family."""
        shape = self.config.intermediate_size, self.config.hidden_size
        return self.tensors("encoder.layer.0.intermediate.dense.weight", shape)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Encoder]:
        """See Family."""
        return prepare(self.config, self.tensors, self.sample, self._pooling(), device, dtype)

    @cached_property
    def _modules(self) -> Modules:
        return Modules.read(self._checkpoint.name, self._described, self.config.hidden_size)

    def _pooling(self) -> Pooling:
        """What the folder says; else what the recipe says. A cross-encoder's score is made of the first token."""
        if self.config.classifies:
            return Pooling.FIRST
        pooling = self._modules.pooling or (self._recipe.pooling if self._recipe else None)
        if pooling is None:
            raise CheckpointError(
                f"{self._checkpoint.name}: modules.json is missing, so nothing says which tokens make a vector; save"
                " the model by sentence-transformers, or add modules.json and 1_Pooling/config.json"
            )
        return pooling
