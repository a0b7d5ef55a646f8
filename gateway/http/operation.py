"""An operation: a method of a path."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from google.protobuf.message import Message
from pydantic import BaseModel
from starlette.responses import Response

from gateway.http.errors import Shape
from gateway.http.exchange import Exchange
from gateway.http.schemas import Schema

Handler: TypeAlias = Callable[[Exchange], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Api:
    """What an API says of errors: how they are written, and the schema of that."""

    shape: Shape
    error: Schema


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path, its handler, and what its description says."""

    method: str
    path: str
    handler: Handler
    api: Api
    summary: str
    body: type[BaseModel] | type[Message] | None
    answer: Schema | type[Message]
    fields: Mapping[str, str] = field(default_factory=dict)
    """The API's names of fields that have another one in the protos."""
    query: Sequence[str] = ()
    """The parameters in the query."""
    streams: bool = False
    """Whether the body is a document a line: it has no limit, and the request no deadline unless it says so."""

    @property
    def shape(self) -> Shape:
        """How its errors are written."""
        return self.api.shape

    @property
    def error(self) -> Schema:
        """The schema of its errors."""
        return self.api.error
