"""A search, what it found, and how it came about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from gateway.index.documents import Document
from services.api.backend import ScoredDocument
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
    reason: str
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


@dataclass(slots=True)
class SearchResult:
    """The answer, and how it came about."""

    hits: Sequence[Hit] = ()
    degradations: list[Degradation] = field(default_factory=list)
    embed_model: common_pb2.ModelIdentity | None = None
    rerank_model: common_pb2.ModelIdentity | None = None
    embed_usage: common_pb2.Usage | None = None
    rerank_usage: common_pb2.Usage | None = None
    retrieval_weight: float = 1.0
    total_ms: float = 0.0
    embed_ms: float = 0.0
    retrieve_ms: float = 0.0
    rerank_ms: float = 0.0
