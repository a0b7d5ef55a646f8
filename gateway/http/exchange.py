"""One HTTP request and its response, as a call of the gateway's own methods."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.http import body
from gateway.http.body import ClientGone
from gateway.http.errors import HttpProblem, UnknownModel
from gateway.http.server import TRANSPORT
from services.runtime.errors import DeadlineTooShort, InvalidField, InvalidFields
from services.runtime.local_calls import LocalCall, LocalCalls, Origin
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2
from winnow.rerank.v1 import rerank_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)
B = TypeVar("B", bound=BaseModel)

TIMEOUT_HEADER = "x-request-timeout-ms"

EMBED = "/winnow.embed.v1.EmbedService/Embed"
EMBED_MODEL = "/winnow.embed.v1.EmbedService/GetModel"
RERANK = "/winnow.rerank.v1.RerankService/Rerank"
RERANK_MODEL = "/winnow.rerank.v1.RerankService/GetModel"

# Headers that become metadata of the call: who calls, and the formats of trace context.
_PASSED = ("authorization", "traceparent", "tracestate", "baggage", "b3", "uber-trace-id", "winnow-caller")
_PASSED_PREFIXES = ("x-b3-", "x-amzn-trace-id", "ot-tracer-", "uberctx-")
# Larger bodies are parsed on another thread: it would hold up all other calls for milliseconds.
_INLINE_BYTES = 128 << 10
_MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """`timeout_s`: of a request that says none. `aliases`: names of models that are accepted, besides their own."""

    limits: common_pb2.Limits
    timeout_s: float
    aliases: frozenset[str]


class Exchange:
    """One request. Its deadline runs from its headers on; a stream (`streams`) has one only if it says so."""

    def __init__(self, request: Request, calls: LocalCalls, settings: FrontSettings, *, streams: bool = False) -> None:
        self.request, self.settings, self._calls = request, settings, calls
        timeout = _timeout(request, None if streams else settings.timeout_s)
        end = None if timeout is None else asyncio.get_running_loop().time() + timeout
        self.origin = Origin(_metadata(request), _peer(request), end)
        self._left = False
        self._read = asyncio.Event()  # set when nobody reads the body, so that its end can be waited for
        if not streams:
            self._read.set()

    async def begin(self, method: str) -> LocalCall:
        """A call that is accepted so far: a caller without a token is refused before the body is read."""
        return await self._calls.begin(method, self.origin)

    async def read(self, kind: type[B]) -> B:
        """The body as JSON of this kind. Raises HttpProblem or InvalidFields."""
        data = await self._body("application/json")
        return await _offloaded(lambda: _validated(kind, data), len(data))

    async def read_message(self, message: M) -> M:
        """The body as the JSON of a protobuf message; an empty body is an empty message."""
        data = await self._body("application/json")
        return await _offloaded(lambda: parsed_message(data, message), len(data)) if data else message

    async def lines(self, kind: Callable[[bytes], T]) -> AsyncIterator[T]:
        """Each line of the body, parsed by `kind`. If the client goes away, it never ends: `run` does then."""
        self._check_type("application/x-ndjson")
        lines = body.lines(self.request, self.settings.limits.max_message_bytes)
        try:
            while True:
                async with asyncio.timeout(self.settings.timeout_s):
                    line = await anext(lines, None)
                if line is None:
                    break
                body.check_values(line)
                yield await _offloaded(partial(kind, line), len(line))
        except TimeoutError:
            raise _late() from None
        except ClientGone:
            self._left = True
        self._read.set()
        if self._left:
            await asyncio.Event().wait()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, which is cancelled if the client goes away."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(self._gone())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _gone(self) -> None:
        await self._read.wait()
        while not self._left:
            self._left = (await self.request.receive())["type"] == "http.disconnect"

    async def embed_model(self, name: str | None = None) -> embed_pb2.GetModelResponse:
        """The embedding model. Raises UnknownModel if the request names another."""
        model: embed_pb2.GetModelResponse = await self._calls.bare(
            EMBED_MODEL, embed_pb2.GetModelRequest(), self.origin
        )
        self._check_name(name, model.model)
        return model

    async def rerank_model(self, name: str | None = None) -> rerank_pb2.GetModelResponse:
        """The rerank model. Raises UnknownModel if the request names another."""
        model: rerank_pb2.GetModelResponse = await self._calls.bare(
            RERANK_MODEL, rerank_pb2.GetModelRequest(), self.origin
        )
        self._check_name(name, model.model)
        return model

    def accepts(self, name: str, model: common_pb2.ModelIdentity) -> bool:
        """Whether the name stands for the model: its id, the last part of it, or an alias."""
        return name in (model.name, model.name.rstrip("/").rpartition("/")[2]) or name in self.settings.aliases

    def _check_name(self, name: str | None, model: common_pb2.ModelIdentity) -> None:
        if name is not None and not self.accepts(name, model):
            raise UnknownModel(name, model.name)

    async def _body(self, kind: str) -> bytes:
        self._check_type(kind)
        try:
            async with asyncio.timeout_at(self.origin.end):
                data = await body.whole(self.request, self.settings.limits.max_message_bytes)
        except TimeoutError:
            raise _late() from None
        body.check_values(data)
        return data

    def _check_type(self, kind: str) -> None:
        """Any type of JSON is accepted. A body without one is refused: pages of other sites can send that."""
        sent = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent != kind and not sent.endswith("json"):
            raise HttpProblem(415, f'The content-type is "{sent[:80]}"; send {kind}.')


def parsed_message(data: bytes, message: M) -> M:
    """The message that the JSON stands for. Raises InvalidField."""
    if not data.lstrip().startswith(b"{"):  # the parser would take an empty list
        raise InvalidField("body", f"is not the JSON of {message.DESCRIPTOR.full_name}: it is no object")
    try:
        return json_format.Parse(data, message, max_recursion_depth=20)
    except (json_format.ParseError, UnicodeError, ValueError, RecursionError) as error:
        raise InvalidField("body", f"is not the JSON of {message.DESCRIPTOR.full_name}: {_brief(error)}") from None


def _validated(kind: type[B], data: bytes) -> B:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidFields([(_path(each["loc"]) or "body", each["msg"]) for each in wrong]) from None


def _path(place: tuple[int | str, ...]) -> str:
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _brief(error: Exception) -> str:
    return str(error).partition("\n")[0][:150] or type(error).__name__


async def _offloaded(work: Callable[[], T], size: int) -> T:
    return work() if size <= _INLINE_BYTES else await asyncio.to_thread(work)


def _late() -> HttpProblem:
    return HttpProblem(408, "The body did not arrive in time.", DeadlineTooShort.code)


def _metadata(request: Request) -> list[tuple[str, str | bytes]]:
    return [
        (name, value) for name, value in request.headers.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    ]


def _timeout(request: Request, default_s: float | None) -> float | None:
    sent = request.headers.get(TIMEOUT_HEADER)
    if sent is None:
        return default_s
    try:
        seconds = float(sent) / 1e3
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_TIMEOUT_S:
        raise InvalidField(TIMEOUT_HEADER, "is no number of milliseconds above 0 and up to a day")
    return seconds


def _peer(request: Request) -> Mapping[str, Iterable[bytes]]:
    """The names of a verified client certificate, as gRPC's auth context has them."""
    tls = request.scope["state"][TRANSPORT].get_extra_info("ssl_object")
    certificate = (tls and tls.getpeercert()) or {}
    spiffe = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return {
        "peer_spiffe_id": [unquote(uri).encode() for uri in spiffe if uri.startswith("spiffe://")],
        "x509_common_name": [name.encode() for name in names],
    }
