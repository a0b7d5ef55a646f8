"""What the engine needs of a model family: prompts, a forward pass over one packed batch, a head on its last states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F

from services.engine.checkpoint.tensors import Tensors
from services.engine.layers.attention import Attention
from services.engine.layers.pooling import Pooling
from services.engine.text.prompts import EmbedTemplate, RerankTemplate
from services.engine.text.tokenizer import Tokenizer
from services.engine.types import Capabilities

Head = Callable[[torch.Tensor], torch.Tensor]
"""`fp32 [E, hidden] -> fp32 [E, width]`."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a forward pass reads. T rows, W of them wanted by the pooling, E texts: see `packing.Packed`."""

    ids: torch.Tensor  # [T] int
    positions: torch.Tensor  # [T] int
    wanted_rows: torch.Tensor  # [W] int: the last layer's outputs that are wanted
    starts: torch.Tensor  # [E + 1] int: where each text's wanted rows begin, then W
    attend: Attention  # every row over the keys it may see
    attend_wanted: Attention  # the wanted rows only


class Model(Protocol):
    """A loaded model. Devices know no more of it than this."""

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it, and itself. Else it sees the whole text."""

    @property
    def pooling(self) -> Pooling:
        """What makes one state of a text's many. The first token's only if it is not causal."""

    def __call__(self, batch: ModelInput) -> torch.Tensor:
        """fp32 `[E, hidden]`: each text's final hidden states, pooled, not normalised."""

    def compiled(self) -> Self:
        """The same model over the same weights, with kernels that are compiled on their first calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What start-up reads of config.json, whatever the family. A family's own config adds its shapes and constants."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int


class Family(Protocol):
    """A checkpoint as its family reads it. Every method may raise CheckpointError."""

    @property
    def config(self) -> Config:
        """config.json. All its values are part of the fingerprint."""

    @property
    def tensors(self) -> Tensors:
        """The weights."""

    @property
    def default_instruction(self) -> str:
        """The instruction of a request that has none; empty if the model takes no instructions."""

    @property
    def template_version(self) -> str:
        """Changes if the prompts do. Part of the fingerprint."""

    def capabilities(self, *, embeds: bool) -> Capabilities:
        """What a request may ask of the model."""

    def check(self, tokenizer: Tokenizer, *, embeds: bool) -> None:
        """Refuses a checkpoint whose files say that it is used in another way than here.

        `embeds`: it is to make vectors, not scores.
        """

    def embed_prompts(self, tokenizer: Tokenizer) -> EmbedTemplate:
        """The prompts of an embedding model."""

    def rerank_prompts(self, tokenizer: Tokenizer) -> RerankTemplate:
        """The prompts of a reranker."""

    def head(self, tokenizer: Tokenizer, device: torch.device, *, embeds: bool) -> tuple[str, Head]:
        """What makes vectors or scores of hidden states, and its name in the fingerprint."""

    def sample(self) -> torch.Tensor:
        """A weight like those that most of the time is spent on, `[out, in]`, as stored."""

    def prepare(self, device: torch.device, dtype: torch.dtype) -> Callable[[int], Model]:
        """Chooses number formats, if need be by a probe. The result reads the weights, for texts of so many tokens."""


def shares_prefixes(model: Model) -> bool:
    """Whether texts may share what they begin with: no token before a text's last one depends on the rest of it."""
    return model.causal and model.pooling is Pooling.LAST


def unit_vectors(hidden: torch.Tensor) -> torch.Tensor:
    """L2-normalised embeddings, `[E, hidden]`."""
    return F.normalize(hidden, dim=-1)
