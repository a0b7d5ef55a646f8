"""A search, what it found, and how it came about."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from gateway.index.documents import Document
from services.api.backend import ScoredDocument
from services.runtime.telemetry.names import DegradedReason
from winnow.common.v1 import common_pb2


class Stage(Enum):
    """A part of a search."""

    EMBED = "embed"
    RETRIEVE = "retrieve"
    RERANK = "rerank"


class Policy(Enum):
    """What to do about the rerank stage."""

    BEST_EFFORT = "best_effort"
    REQUIRED = "required"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class SearchJob:
    """A search with every default resolved but the models'. Either `collection` or `documents`."""

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
    """A stage that fell short."""

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
    """A document of the answer."""

    candidate: Candidate
    score: float
    reranked: ScoredDocument | None


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Candidates, best first. `model` is None if nothing was embedded: then their order says nothing."""

    candidates: Sequence[Candidate]
    degradations: Sequence[Degradation] = ()
    model: common_pb2.ModelIdentity | None = None
    usage: common_pb2.Usage | None = None
    embed_ms: float = 0.0
    retrieve_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SecondStage:
    """A score for each candidate, None for those without. `retrieval_weight`: the first stage's share of the blend."""

    scores: Sequence[ScoredDocument | None]
    retrieval_weight: float = 1.0
    degradations: Sequence[Degradation] = ()
    model: common_pb2.ModelIdentity | None = None
    usage: common_pb2.Usage | None = None
    rerank_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The hits, best first, and how they came about."""

    hits: Sequence[Hit]
    first: FirstStage
    second: SecondStage
    total_ms: float

    @property
    def degradations(self) -> Sequence[Degradation]:
        """Of both stages."""
        return [*self.first.degradations, *self.second.degradations]
