"""Usage: what was computed and what came from the cache; failed items are neither."""

from google.rpc import status_pb2

from services.api.backend import EmbeddedText, FailedItem, ScoredDocument, embed_usage, rerank_usage
from winnow.common.v1 import common_pb2

FAILED = FailedItem(status_pb2.Status(code=3), tokens=1000)


def test_of_texts() -> None:
    items: list[EmbeddedText | FailedItem] = [
        EmbeddedText(5, False),
        FAILED,
        EmbeddedText(7, True, cache_hit=True),
        EmbeddedText(1, False),
    ]
    assert embed_usage(items) == common_pb2.Usage(input_tokens=13, cache_hits=1, cache_misses=2)


def test_of_documents() -> None:
    items: list[ScoredDocument | FailedItem] = [ScoredDocument(0.0, 0.5, 4, False, cache_hit=True), FAILED]
    assert rerank_usage(items) == common_pb2.Usage(input_tokens=4, cache_hits=1, cache_misses=0)


def test_of_nothing() -> None:
    assert embed_usage([]) == rerank_usage([FAILED]) == common_pb2.Usage()
