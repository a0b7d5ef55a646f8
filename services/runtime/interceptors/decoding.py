"""Decodes requests and serialises responses within the handler's interceptors.

A message that exceeds the limit or is malformed (including invalid UTF-8) fails with INVALID_ARGUMENT. grpc itself
would return RESOURCE_EXHAUSTED or INTERNAL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidField, Problem
from services.runtime.interceptors.interceptor import Interceptor

_LESS = (
    "fit into one message. Ask for fewer texts, documents or ids, for a smaller page_size or top_n, "
    "or without return_text or return_documents"
)


class DecodingInterceptor(Interceptor):
    """Refuses requests and responses of more than `max_message_bytes`, and malformed requests.

    A handler may return bytes: a response that it has serialised itself.
    """

    infrastructure = False

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes

    def decoder(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """Returns a Problem instead of an invalid message: an exception here would reach the caller as INTERNAL."""
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
        """Raises the Problem that `decoder` returned."""
        if isinstance(request, Problem):
            raise request
        return request

    def finisher(self, method: str, encode: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
        """Serialises within the handler: an exception in grpc's serializer would reach the caller as INTERNAL."""

        def serialized(response: Any) -> bytes:
            data = response if isinstance(response, bytes) or encode is None else encode(response)
            if len(data) > self._limit:
                raise InvalidField(
                    _response_type(method), f"would have {len(data)} bytes; at most {self._limit} {_LESS}"
                )
            return data

        return serialized


def _response_type(method: str) -> str:
    """Full name of the response message of the method ("/package.Service/Method")."""
    name = method.lstrip("/").replace("/", ".")
    try:
        return str(descriptor_pool.Default().FindMethodByName(name).output_type.full_name)
    except KeyError:
        return "response"
