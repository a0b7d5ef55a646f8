"""POST /v1/rerank, as clients of Jina, vLLM and Cohere's first version send it, and POST /v2/rerank of Cohere."""

import json
import secrets
from typing import Any

from starlette.responses import Response

from gateway.errors import as_problem
from gateway.http.exchange import RERANK, Exchange
from gateway.http.fields import Body, Count, TextObject, text_of
from services.runtime.errors import with_field
from services.runtime.local_calls import LocalCall
from winnow.rerank.v1 import rerank_pb2

# The least that the contract allows; a smaller limit of a client is raised to it.
_LEAST_TOKENS = 128


class RerankRequest(Body):
    """The body of both routes. `instruction` is an extension; an object of `documents` has a member `text`."""

    query: str
    documents: list[str | TextObject]
    model: str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    instruction: str | None = None


async def rerank_v1(exchange: Exchange) -> Response:
    """POST /v1/rerank. Documents are returned unless the client says no: clients of Jina and vLLM expect them."""
    wanted, response = await _reranked(exchange)
    body = {
        **_common(response),
        "model": response.model.name,
        "object": "list",
        "results": _results(response, wanted, returned=wanted.return_documents is not False),
        "usage": {"prompt_tokens": response.usage.input_tokens, "total_tokens": response.usage.input_tokens},
    }
    return _json(body)


async def rerank_v2(exchange: Exchange) -> Response:
    """POST /v2/rerank. Documents are returned if the client asks for them."""
    wanted, response = await _reranked(exchange)
    results = _results(response, wanted, returned=wanted.return_documents is True)
    return _json({**_common(response), "results": results})


async def scored(
    exchange: Exchange,
    call: LocalCall,
    request: rerank_pb2.RerankRequest,
    model: str | None = None,
    max_tokens: int | None = None,
) -> rerank_pb2.RerankResponse:
    """Reranks. A document that fails, fails the request: these APIs have no error of an item.

    `max_tokens`: a limit of the client, which is put within those of the model.
    """

    async def work() -> bytes:
        served = await exchange.rerank_model(model)
        if max_tokens is not None:
            request.max_tokens = min(max(max_tokens, _LEAST_TOKENS), served.max_tokens)
        return await call.unary(request)

    response = rerank_pb2.RerankResponse.FromString(await exchange.run(work()))
    for each in response.errors:
        raise as_problem(with_field(each.error, f"documents[{each.index}]"))
    return response


async def _reranked(exchange: Exchange) -> tuple[RerankRequest, rerank_pb2.RerankResponse]:
    call = await exchange.begin(RERANK)
    wanted = await exchange.read(RerankRequest)
    request = rerank_pb2.RerankRequest(
        query=wanted.query,
        documents=[text_of(document) for document in wanted.documents],
        top_n=wanted.top_n,
        instruction=wanted.instruction,
    )
    return wanted, await scored(exchange, call, request, wanted.model, wanted.max_tokens_per_doc)


def _common(response: rerank_pb2.RerankResponse) -> dict[str, Any]:
    billed = {"search_units": 1, "input_tokens": response.usage.input_tokens}
    return {"id": secrets.token_hex(16), "meta": {"api_version": {"version": "2"}, "billed_units": billed}}


def _results(response: rerank_pb2.RerankResponse, wanted: RerankRequest, *, returned: bool) -> list[dict[str, Any]]:
    return [
        {
            "index": result.index,
            "relevance_score": result.score,
            **({"document": {"text": text_of(wanted.documents[result.index])}} if returned else {}),
        }
        for result in response.results
    ]


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body, ensure_ascii=False).encode(), media_type="application/json")
