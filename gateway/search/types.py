"""A search and its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from gateway.index.documents import Document
from services.api.backend import ScoredDocument
from services.runtime.telemetry.names import DegradedReason
from winnow.common.v1 import common_pb2


class Stage(Enum):
    """A stage of a search."""

    EMBED = "embed"
    RETRIEVE = "retrieve"
    RERANK = "rerank"


class Policy(Enum):
    """Whether the rerank stage runs, and may fail."""

    BEST_EFFORT = "best_effort"
    REQUIRED = "required"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class SearchJob:
    """A search with all defaults resolved, except those of the models. Either `collection` or `documents`."""

    query: str
    collection: str | None
    filter: str
    documents: Sequence[Document]
    instruction: str | None
    candidates: int
    top_n: int
    policy: Policy
    retrieval_weight: float | None
    min_score: float | None
    text: bool
    metadata: bool
    priority: common_pb2.Priority


@dataclass(frozen=True, slots=True)
class Degradation:
    """A stage that failed in whole or in part."""

    stage: Stage
    reason: DegradedReason
    message: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document of the first stage. `rank` from 1."""

    document: Document
    cosine: float
    rank: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A document of the result."""

    candidate: Candidate
    score: float
    reranked: ScoredDocument | None


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Candidates, best first. `model` is None if nothing was embedded: then their order has no meaning."""

    candidates: Sequence[Candidate]
    degradations: Sequence[Degradation] = ()
    model: common_pb2.ModelIdentity | None = None
    usage: common_pb2.Usage | None = None
    embed_ms: float = 0.0
    retrieve_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SecondStage:
    """A score for each candidate, or None. `retrieval_weight`: the weight of the first stage in the blend."""

    scores: Sequence[ScoredDocument | None]
    retrieval_weight: float = 1.0
    degradations: Sequence[Degradation] = ()
    model: common_pb2.ModelIdentity | None = None
    usage: common_pb2.Usage | None = None
    rerank_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits, best first, and the stages that they came from."""

    hits: Sequence[Hit]
    first: FirstStage
    second: SecondStage
    total_ms: float

    @property
    def degradations(self) -> Sequence[Degradation]:
        """Of both stages."""
        return [*self.first.degradations, *self.second.degradations]
