import jsonschema
from google.protobuf import json_format

from gateway.http.openai import EmbeddingsRequest
from gateway.http.schemas import Schemas
from winnow.retrieval.v1 import retrieval_pb2 as pb


def validator(schemas: Schemas, reference: dict[str, object]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**reference, "components": {"schemas": schemas.named}})


def test_a_written_message_meets_its_schema() -> None:
    schemas = Schemas()
    check = validator(schemas, schemas.of(pb.SearchResponse, written=True))
    response = pb.SearchResponse(hits=[pb.SearchHit(id="a", rerank_score=0.5)], degraded=True)
    response.embed_usage.input_tokens = 3
    response.degradations.add(stage=pb.STAGE_RERANK)
    plain = json_format.MessageToDict(response, always_print_fields_with_no_presence=True)
    check.validate(plain)
    assert not check.is_valid({**plain, "hits": [{"id": 3}]})
    assert not check.is_valid({**plain, "nothing": 1})
    del plain["degraded"]
    assert not check.is_valid(plain)


def test_a_sent_message_may_leave_fields_out() -> None:
    schemas = Schemas()
    check = validator(schemas, schemas.of(pb.SearchRequest))
    check.validate({"query": "x", "collection": {"name": "docs"}})
    assert not check.is_valid({"query": "x", "rerank": "NEVER"})


def test_a_body_has_the_schema_of_its_model() -> None:
    schemas = Schemas()
    check = validator(schemas, schemas.of(EmbeddingsRequest))
    check.validate({"model": "m", "input": ["a"]})
    assert not check.is_valid({"input": "a"})
