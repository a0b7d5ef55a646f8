"""The values that cross the engine's border."""

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.engine.errors import EngineError

Ids = npt.NDArray[np.int32]
Vector = npt.NDArray[np.float32]


class InputType(enum.Enum):
    """How a text is presented to the embedding model. Prompts are the model's own; examples are Qwen3-Embedding's."""

    DOCUMENT = "document"  # the raw text
    QUERY = "query"  # Instruct: {instruction}\nQuery:{text}
    SYMMETRIC = "symmetric"  # the same prompt as QUERY, meant for both sides of a comparison


class Truncation(enum.Enum):
    """What happens to a text over the token limit."""

    END = "end"  # cut the end, keep the head
    START = "start"  # cut the start, keep the tail
    ERROR = "error"  # fail the item


class Priority(enum.Enum):
    """Interactive work goes first; bulk work is never starved."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class Score(enum.Enum):
    """What a reranker's card calls the score."""

    PROBABILITY = "probability"  # sigmoid of the logit
    LOGIT = "logit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a request may ask of a model, and what its scores are."""

    input_types: tuple[InputType, ...]  # of an embedding model, DOCUMENT and QUERY always; a reranker has none
    instructions: bool  # whether a request may bring its own
    sliced: bool  # Matryoshka: the first values of a vector are a vector too
    score: Score  # of a reranker


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to load and run a model. Sizes are in tokens."""

    model: str  # a folder in Hugging Face layout, or a hub id
    revision: str | None = None
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16 | int8
    max_tokens: int = 0  # per text, prompt and special tokens included; 0: 8192, or the model's own limit if less
    batch_tokens: int = 0  # per step of the model; 0 picks a size that suits the device
    # Admitted but not yet running, a quarter for interactive requests alone; 0: 32 batches, at least 16 longest texts.
    queue_tokens: int = 0
    # Work before an interactive request, as measured. Longer than most callers wait who name no deadline.
    queue_seconds: float = 10.0
    threads: int | None = None  # of the CPU kernels; None: one per core
    tokenizer_threads: int = 2  # bulk requests hold one less, if there are more


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is being served. Sizes are in tokens."""

    name: str
    revision: str
    fingerprint: str  # equal fingerprints give equal results: see `identity.fingerprint`
    dimensions: int  # native width of the vectors; 0 for a reranker
    max_tokens: int
    dtype: str
    device: str
    capabilities: Capabilities
    default_instruction: str  # empty if the model takes no instructions
    template_version: str
    weights_digest: str


@dataclass(frozen=True, slots=True)
class EmbedItem:
    """`vector`: float32 `[dimensions]`, full width, L2-normalised. `tokens` counts prompt and special tokens too."""

    vector: Vector
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class RerankItem:
    """`logit`, for Qwen3 logit(yes) - logit(no): rank by it, it has no ties near 0 and 1."""

    logit: float
    tokens: int
    truncated: bool

    @property
    def probability(self) -> float:
        """sigmoid(logit), for Qwen3 the softmax over {no, yes} at "yes", without overflow at either end."""
        if self.logit >= 0:
            return 1.0 / (1.0 + math.exp(-self.logit))
        odds = math.exp(self.logit)
        return odds / (1.0 + odds)


@dataclass(frozen=True, slots=True)
class Failure:
    """Takes a failed item's place; its neighbours are unaffected. `tokens`: of the item, 0 if not counted."""

    error: EngineError
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds. `forward_s` sums the batches it took part in."""

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    forward_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """`items` in the order of the texts."""

    items: list[EmbedItem | Failure]
    timings: Timings


@dataclass(frozen=True, slots=True)
class RerankResult:
    """`items` in the order of the documents."""

    items: list[RerankItem | Failure]
    timings: Timings


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One step of the model, for whoever keeps the telemetry."""

    started_ns: int  # time.time_ns()
    ended_ns: int
    tokens: int  # unique tokens, the ones computed
    requested_tokens: int  # what would have been computed without sharing
    segments: int  # texts
    priority: Priority  # of the request that opened the batch
    requests: tuple[object, ...]  # the `context` of every request served


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue at one moment, in tokens."""

    queued_tokens: int
    inflight_tokens: int
    tokens_per_second: float
    queue_limit_tokens: int

    @property
    def seconds(self) -> float:
        """Estimated time to finish everything admitted so far."""
        return (self.queued_tokens + self.inflight_tokens) / self.tokens_per_second
