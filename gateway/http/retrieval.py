"""Searches, collections and documents: the messages of RetrievalService as the JSON of protobuf."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.responses import Response

from gateway.http.errors import described, status_shape
from gateway.http.exchange import Exchange, parsed_message
from gateway.http.operation import Handler
from services.runtime.errors import InvalidField, Problem
from winnow.retrieval.v1 import retrieval_pb2 as pb

_SERVICE = "/winnow.retrieval.v1.RetrievalService/"
# Larger responses are written on another thread.
_INLINE_BYTES = 32 << 10
# Lines of an upsert that become one message: what the workers embed at once.
_LINES = 64

M = TypeVar("M", bound=Message)


def unary(method: str, request: type[M], response: type[Message], fill: Callable[[Exchange, M], None]) -> Handler:
    """The handler of a method whose request has its message as its body. `fill` adds what path and query say."""

    async def handler(exchange: Exchange) -> Response:
        call = await exchange.begin(_SERVICE + method)
        message = request()
        if exchange.request.method in ("POST", "PUT"):
            message = await exchange.read_message(message)
        fill(exchange, message)
        data = await exchange.run(call.unary(message))
        if len(data) <= _INLINE_BYTES:
            return _json(response.FromString(data))
        return await asyncio.to_thread(lambda: _json(response.FromString(data)))

    handler.__doc__ = f"RetrievalService.{method}."
    return handler


def path(**names: str) -> Callable[[Exchange, Any], None]:
    """Sets fields from the path: field=parameter."""

    def fill(exchange: Exchange, message: Any) -> None:
        for field, parameter in names.items():
            setattr(message, field, exchange.request.path_params[parameter])

    return fill


def page(exchange: Exchange, message: pb.ListCollectionsRequest) -> None:
    """Sets the page from the query."""
    query = exchange.request.query_params
    size = query.get("page_size", query.get("pageSize", "0"))
    if not (size.isascii() and size.isdigit() and len(size) < 10):
        raise InvalidField("page_size", "is no number")
    message.page_size = int(size)
    message.page_token = query.get("page_token", query.get("pageToken", ""))


def ids(exchange: Exchange, message: pb.GetDocumentsRequest | pb.DeleteDocumentsRequest) -> None:
    """Sets the collection from the path, and the ids from the query: `?ids=a&ids=b`."""
    message.collection = exchange.request.path_params["name"]
    message.ids.extend(exchange.request.query_params.getlist("ids"))


async def upsert(exchange: Exchange) -> Response:
    """POST /v1/collections/{name}/documents: a Document a line; the response has an UpsertResult a line.

    The results are sent when all documents have been read, since most clients read nothing before. If the stream
    fails after some results, its error is the last line.
    """
    call = await exchange.begin(_SERVICE + "UpsertDocuments")
    results: list[bytes] = []

    async def work() -> None:
        async with aclosing(call.stream(_messages(exchange))) as responses:
            async for data in responses:
                for result in pb.UpsertDocumentsResponse.FromString(data).results:
                    results.append(_line(_plain(result)))

    try:
        await exchange.run(work())
    except Problem as problem:
        if not results:
            raise
        failure = described(problem)
        results.append(_line(status_shape(failure)))
        return Response(b"".join(results), failure.http_status, media_type="application/x-ndjson")
    return Response(b"".join(results), media_type="application/x-ndjson")


async def _messages(exchange: Exchange) -> AsyncIterator[pb.UpsertDocumentsRequest]:
    """The documents in messages; the first one names the collection, even if there are no documents."""
    message = pb.UpsertDocumentsRequest(collection=exchange.request.path_params["name"])
    async for document in exchange.lines(lambda line: parsed_message(line, pb.Document())):
        message.documents.append(document)
        if len(message.documents) == _LINES:
            yield message
            message = pb.UpsertDocumentsRequest()
    if message.documents or message.collection:
        yield message


def _json(message: Message) -> Response:
    return Response(json.dumps(_plain(message), ensure_ascii=False).encode(), media_type="application/json")


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    return plain


def _line(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=False).encode() + b"\n"
