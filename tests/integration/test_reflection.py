"""A generic gRPC tool, which knows nothing but an address, can find, build and call everything by reflection."""

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deploy.local.stack import Stack

README_REQUEST = {"query": "delete a folder", "documents": {"documents": [{"text": "rmtree removes a tree"}]}}


@pytest.mark.timeout(120)
def test_search_by_reflection(stack: Stack) -> None:
    with grpc.insecure_channel(stack.addresses["gateway"]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) >= {
            "winnow.embed.v1.EmbedService",
            "winnow.rerank.v1.RerankService",
            "winnow.retrieval.v1.RetrievalService",
            "grpc.health.v1.Health",
        }
        service = DescriptorPool(database).FindServiceByName("winnow.retrieval.v1.RetrievalService")
        method = service.FindMethodByName("Search")
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        answer = MessageToDict(call(ParseDict(README_REQUEST, request()), timeout=30))
    assert answer["hits"][0]["text"] == "rmtree removes a tree"
    assert answer["hits"][0]["id"] == "0"


@pytest.mark.parametrize("process", ["embed", "rerank"])
def test_workers_reflect_too(stack: Stack, process: str) -> None:
    with grpc.insecure_channel(stack.addresses[process]) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert f"winnow.{process}.v1.{process.capitalize()}Service" in services
