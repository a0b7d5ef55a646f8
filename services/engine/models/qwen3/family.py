"""Qwen3-Embedding and Qwen3-Reranker: see `Family`."""

from collections.abc import Callable

import torch

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.refusals import refuse_own_code
from services.engine.checkpoint.sentence_transformers import Described
from services.engine.checkpoint.tensors import Tensors
from services.engine.models.base import Head, unit_vectors
from services.engine.models.decoder import build
from services.engine.models.decoder.forward import Decoder
from services.engine.models.decoder.weights import usage
from services.engine.models.qwen3 import compatibility
from services.engine.models.qwen3.config import ModelConfig, classifies
from services.engine.models.qwen3.heads import classifier, labels_of, yes_no
from services.engine.models.qwen3.prompts import DEFAULT_INSTRUCTION, TEMPLATE_VERSION, EmbedPrompts, RerankPrompts
from services.engine.models.recipes import recipe_of
from services.engine.models.scores import score_of
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Capabilities, InputType, Score


class Qwen3Family:
    """A checkpoint as a dense Qwen3."""

    default_instruction = DEFAULT_INSTRUCTION
    template_version = TEMPLATE_VERSION

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError for anything that would be computed wrongly."""
        refuse_own_code(checkpoint)
        self._checkpoint = checkpoint
        self._classifies = classifies(checkpoint.raw_config)
        self.config = ModelConfig.parse(checkpoint.raw_config)
        head = "score.weight" if self._classifies else "lm_head.weight"
        self.tensors = Tensors(checkpoint.name, checkpoint.folder, usage(self.config, head))

    def capabilities(self, *, embeds: bool) -> Capabilities:
        """See Family."""
        score = Score.PROBABILITY
        if self._classifies and len(labels_of(self._checkpoint.raw_config)) == 1:
            described = Described(self._checkpoint.folder)
            score = score_of(self._checkpoint, described, recipe_of(self._checkpoint.name))
        return Capabilities(
            input_types=tuple(InputType) if embeds else (), instructions=True, sliced=embeds, score=score
        )

    def check(self, tokenizer: Tokenizer, *, embeds: bool) -> None:
        """See Family."""
        compatibility.check(
            self._checkpoint, tokenizer, has_head=self.tensors.has_prefix, classifies=self._classifies, embeds=embeds
        )

    def embed_prompts(self, tokenizer: Tokenizer) -> EmbedPrompts:
        """See Family."""
        return EmbedPrompts(tokenizer)

    def rerank_prompts(self, tokenizer: Tokenizer) -> RerankPrompts:
        """See Family."""
        return RerankPrompts(tokenizer)

    def head(self, tokenizer: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        """See Family."""
        if embeds:
            return "embedding", unit_vectors
        if self._classifies:
            return classifier(self.config, self._checkpoint.raw_config, self.tensors, device)
        prompts = RerankPrompts(tokenizer)
        return "yes over no", yes_no(self.config, self.tensors, prompts.yes_id, prompts.no_id, device)

    def sample(self) -> torch.Tensor:
        """See Family."""
        return build.sample(self.config, self.tensors)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Decoder]:
        """See Family."""
        return build.prepare(self.config, self.tensors, device, dtype)
