"""Every method of the contract is in one group."""

from collections import Counter

from gateway.callers.methods import GROUPS, STREAMS, group_of, short_name
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2
from winnow.retrieval.v1 import retrieval_pb2

METHODS = [
    method
    for module in (embed_pb2, rerank_pb2, retrieval_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_every_method_is_in_exactly_one_group() -> None:
    grouped = Counter(name for group in GROUPS.values() for name in group)
    assert grouped == Counter({method.name for method in METHODS})


def test_streams_are_those_that_the_contract_calls_streams() -> None:
    assert {method.name for method in METHODS if method.client_streaming} == STREAMS


def test_names() -> None:
    assert short_name("winnow.retrieval.v1.RetrievalService/Search") == "Search"
    assert group_of("Search") == "read"
    assert group_of("SetAlias") == "write"
