"""The HTTP application: the operations as routes, health, the description and the page."""

import json

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http import openapi, page_files
from gateway.http.body import ClientGone
from gateway.http.errors import HttpProblem, response, status_shape
from gateway.http.exchange import Exchange, FrontSettings
from gateway.http.operation import Operation
from gateway.http.operations import OPERATIONS
from services.runtime.lifecycle import Lifecycle, Phase
from services.runtime.local_calls import LocalCalls
from services.runtime.rpc_status import to_problem


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

    description = json.dumps(openapi.described(OPERATIONS)).encode()
    shown = openapi.page(OPERATIONS)

    async def described(request: Request) -> Response:
        return Response(description, media_type="application/json")

    async def docs(request: Request) -> Response:
        return Response(shown, headers=page_files.HEADERS, media_type="text/html")

    routes += [Route("/openapi.json", described, methods=["GET"]), Route("/docs", docs, methods=["GET"])]
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
    if error.status_code == 404:
        advice, code = "GET /docs lists the paths.", grpc.StatusCode.NOT_FOUND
    else:
        advice, code = f"{request.method} is not one of its methods.", grpc.StatusCode.UNIMPLEMENTED
    what = f"There is no {request.method} {request.url.path[:200]} here. {advice}"
    answer = response(HttpProblem(error.status_code, what, code), status_shape)
    answer.headers.update(error.headers or {})
    return answer
