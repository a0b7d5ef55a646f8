"""The HTTP application: its routes, and what holds for all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import cohere, openai, page_files, rerank, tei
from gateway.http.body import ClientGone
from gateway.http.errors import (
    HttpProblem,
    Shape,
    cohere_shape,
    openai_shape,
    rerank_shape,
    response,
    status_shape,
    tei_shape,
)
from gateway.http.exchange import Exchange, FrontSettings
from gateway.http.retrieval import Handler, ids, page, path, unary, upsert
from services.runtime.errors import Problem
from services.runtime.lifecycle import Lifecycle, Phase
from services.runtime.local_calls import LocalCalls
from services.runtime.rpc_status import to_problem
from winnow.retrieval.v1 import retrieval_pb2 as pb


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path, and the shape of its errors."""

    method: str
    path: str
    handler: Handler
    shape: Shape
    fields: Mapping[str, str] = field(default_factory=dict)
    """The API's names of fields that have another one in the protos."""
    streams: bool = False
    """Whether the body has no limit, and the request no deadline unless it says so."""


_INPUT = {"texts": "input"}
_INPUTS = {"texts": "inputs"}
_TEXTS = {"documents": "texts"}

OPERATIONS = (
    Operation("POST", "/v1/embeddings", openai.embeddings, openai_shape, _INPUT),
    Operation("GET", "/v1/models", openai.models, openai_shape),
    Operation("GET", "/v1/models/{id:path}", openai.model, openai_shape),
    Operation("POST", "/v1/rerank", rerank.rerank_v1, rerank_shape),
    Operation("POST", "/v2/rerank", rerank.rerank_v2, cohere_shape),
    Operation("POST", "/v2/embed", cohere.embed_v2, cohere_shape),
    Operation("POST", "/embed", tei.embed, tei_shape, _INPUTS),
    Operation("POST", "/rerank", tei.rerank, tei_shape, _TEXTS),
    Operation("POST", "/predict", tei.predict, tei_shape),
    Operation("GET", "/info", tei.info, tei_shape),
    Operation("POST", "/v1/search", unary("Search", pb.SearchRequest, pb.SearchResponse, path()), status_shape),
    Operation(
        "GET",
        "/v1/collections",
        unary("ListCollections", pb.ListCollectionsRequest, pb.ListCollectionsResponse, page),
        status_shape,
    ),
    Operation(
        "POST",
        "/v1/collections",
        unary("CreateCollection", pb.CreateCollectionRequest, pb.CreateCollectionResponse, path()),
        status_shape,
    ),
    Operation(
        "GET",
        "/v1/collections/{name}",
        unary("GetCollection", pb.GetCollectionRequest, pb.GetCollectionResponse, path(name="name")),
        status_shape,
    ),
    Operation(
        "DELETE",
        "/v1/collections/{name}",
        unary("DeleteCollection", pb.DeleteCollectionRequest, pb.DeleteCollectionResponse, path(name="name")),
        status_shape,
    ),
    Operation("POST", "/v1/collections/{name}/documents", upsert, status_shape, streams=True),
    Operation(
        "GET",
        "/v1/collections/{name}/documents",
        unary("GetDocuments", pb.GetDocumentsRequest, pb.GetDocumentsResponse, ids),
        status_shape,
    ),
    Operation(
        "DELETE",
        "/v1/collections/{name}/documents",
        unary("DeleteDocuments", pb.DeleteDocumentsRequest, pb.DeleteDocumentsResponse, ids),
        status_shape,
    ),
    Operation(
        "PUT",
        "/v1/aliases/{alias}",
        unary("SetAlias", pb.SetAliasRequest, pb.SetAliasResponse, path(alias="alias")),
        status_shape,
    ),
    Operation(
        "DELETE",
        "/v1/aliases/{alias}",
        unary("DeleteAlias", pb.DeleteAliasRequest, pb.DeleteAliasResponse, path(alias="alias")),
        status_shape,
    ),
)


def application(calls: LocalCalls, lifecycle: Lifecycle, settings: FrontSettings) -> ASGIApp:
    """The ASGI application over the gateway's own methods."""
    routes: list[BaseRoute] = [
        Route(each.path, _Endpoint(each, calls, settings), methods=[each.method]) for each in OPERATIONS
    ]

    async def live(request: Request) -> Response:
        return Response(b"ok\n", 503 if lifecycle.phase is Phase.BROKEN else 200, media_type="text/plain")

    async def ready(request: Request) -> Response:
        return Response(
            f"{lifecycle.phase.value}\n", 200 if lifecycle.phase is Phase.SERVING else 503, media_type="text/plain"
        )

    routes += [Route("/healthz", live, methods=["GET"]), Route("/readyz", ready, methods=["GET"])]
    routes += page_files.routes()
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_route})


class _Endpoint:
    """An operation as an ASGI application, so that a client that is gone gets no response."""

    def __init__(self, operation: Operation, calls: LocalCalls, settings: FrontSettings) -> None:
        self._operation, self._calls, self._settings = operation, calls, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._operation
        request = Request(scope, receive)
        try:
            exchange = Exchange(request, self._calls, self._settings, streams=operation.streams)
            answer = await operation.handler(exchange)
        except ClientGone:
            return
        except Exception as error:
            answer = response(to_problem(error), operation.shape, operation.fields)
        await answer(scope, receive, send)


async def _no_route(request: Request, error: Exception) -> Response:
    """No such path, or no such method of it."""
    assert isinstance(error, HTTPException)
    advice = (
        "GET /docs lists the paths." if error.status_code == 404 else f"{request.method} is not one of its methods."
    )
    problem: Problem = HttpProblem(
        error.status_code, f"There is no {request.method} {request.url.path[:200]} here. {advice}"
    )
    answer = response(problem, status_shape)
    answer.headers.update(error.headers or {})
    return answer
