"""The first look at a request's bytes.

What is over the limit or no protobuf message (invalid UTF-8 among it) is INVALID_ARGUMENT here, where grpc itself
would say RESOURCE_EXHAUSTED or INTERNAL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidField, Problem
from services.runtime.interceptors.layer import Layer


class MessagesLayer(Layer):
    """Refuses messages of more than `max_message_bytes`, and malformed ones."""

    infrastructure = False

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes

    def decoder(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """Hands on a problem in the place of a bad message: a raise here would reach the caller as INTERNAL."""
        if decode is None:
            return None
        # `FromString` is bound to its message class.
        kind = getattr(getattr(getattr(decode, "__self__", None), "DESCRIPTOR", None), "full_name", "request")

        def checked(data: bytes) -> Any:
            if len(data) > self._limit:
                return InvalidField(kind, f"has {len(data)} bytes; at most {self._limit} fit into one message")
            try:
                return decode(data)
            except (DecodeError, UnicodeDecodeError):
                return InvalidField(kind, "is not a valid message of this type; strings must be valid UTF-8")

        return checked

    def request(self, request: Any) -> Any:
        """Raises the problem that stands in a request's place."""
        if isinstance(request, Problem):
            raise request
        return request
