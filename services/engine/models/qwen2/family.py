"""Embedding models on Qwen2: see `Family`."""

from collections.abc import Callable

import torch

from services.engine.checkpoint.checkpoint import Checkpoint
from services.engine.checkpoint.sentence_transformers import Described
from services.engine.checkpoint.tensors import Tensors
from services.engine.errors import CheckpointError
from services.engine.models.base import Head
from services.engine.models.decoder import build
from services.engine.models.decoder.forward import Decoder
from services.engine.models.decoder.weights import usage
from services.engine.models.modules import Modules
from services.engine.models.qwen2 import compatibility
from services.engine.models.qwen2.config import Qwen2Config
from services.engine.models.recipes import recipe_of
from services.engine.models.wording import wording
from services.engine.text.prompts import RerankTemplate
from services.engine.text.templates import PlainPrompts
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Capabilities, Score


class Qwen2Family:
    """A checkpoint as a dense Qwen2 that makes vectors. Code of its own that config.json names is not needed once the
    mask is known."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError for anything that would be computed wrongly."""
        self._checkpoint, self._recipe = checkpoint, recipe_of(checkpoint.name)
        self.config = Qwen2Config.parse(checkpoint.raw_config)
        self._causal = compatibility.causal(checkpoint, self._recipe)
        self.tensors = Tensors(checkpoint.name, checkpoint.folder, usage(self.config, "lm_head.weight"))
        described = Described(checkpoint.folder)
        self._modules = Modules.read(checkpoint.name, described, self.config.hidden_size)
        self._pooling = compatibility.pooling(checkpoint, self._modules, self._recipe)
        self._wording = wording(checkpoint.name, described, self._recipe)
        self.default_instruction = self._wording.instruction
        self.template_version = self._wording.version

    def capabilities(self, *, embeds: bool) -> Capabilities:
        """See Family."""
        return Capabilities(
            input_types=self._wording.input_types,
            instructions=self._wording.instructions,
            sliced=False,
            score=Score.LOGIT,
        )

    def check(self, tokenizer: Tokenizer, *, embeds: bool) -> None:
        """See Family."""
        if not embeds:
            raise self._no_reranker()
        compatibility.check_text(self._checkpoint, tokenizer, self._pooling, self._recipe)
        self.embed_prompts(tokenizer).check()

    def embed_prompts(self, tokenizer: Tokenizer) -> PlainPrompts:
        """See Family."""
        return PlainPrompts(tokenizer, self._wording)

    def rerank_prompts(self, tokenizer: Tokenizer) -> RerankTemplate:
        """See Family."""
        raise self._no_reranker()

    def head(self, tokenizer: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        """See Family."""
        return self._modules.head(device)

    def sample(self) -> torch.Tensor:
        """See Family."""
        return build.sample(self.config, self.tensors)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Decoder]:
        """See Family."""
        return build.prepare(self.config, self.tensors, device, dtype, causal=self._causal, pooling=self._pooling)

    def _no_reranker(self) -> CheckpointError:
        return CheckpointError(
            f"{self._checkpoint.name}: config.json: model_type is 'qwen2', which is served as an embedding model only;"
            " serve it by the embed worker"
        )
