"""Decodes requests and serialises responses within the handler's interceptors, after the call has been admitted.

A message that exceeds a limit or is malformed (including invalid UTF-8) fails with INVALID_ARGUMENT. grpc itself would
return RESOURCE_EXHAUSTED or INTERNAL.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from services.runtime.errors import InvalidField
from services.runtime.interceptors.interceptor import Interceptor
from services.runtime.memory import FreedMemory
from services.runtime.wire import Shape, holds_lists

_LESS = (
    "fit into one message. Ask for fewer texts, documents or ids, for a smaller page_size or top_n, "
    "or without return_text or return_documents"
)

# Of a request without lists: names and numbers. A request of this size cannot hold enough fields to matter.
_SMALL_BYTES = 1 << 16

_GZIP_MAGIC = b"\x1f\x8b"  # no message begins so: its first field would have wire type 7, which does not exist
_GZIP_WINDOW = 31  # zlib's number for gzip


class DecodingInterceptor(Interceptor):
    """Refuses requests and responses of more than `max_message_bytes`, and malformed requests.

    A request may hold `max_items` in each repeated field; one without such fields has at most 64 KiB. Both is checked
    before it is parsed. A handler may return bytes: a response that it has serialised itself.
    """

    def __init__(self, max_message_bytes: int, max_items: int) -> None:
        self._limit = max_message_bytes
        self._max_items = max_items
        self._freed = FreedMemory()

    def reader(self, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        """Decompresses, checks and decodes. An exception in grpc's deserializer would reach the caller as INTERNAL."""
        message = getattr(getattr(decode, "__self__", None), "DESCRIPTOR", None)  # of the class of `FromString`
        if decode is None or message is None:
            return None
        name, shape = message.full_name, Shape(message, self._max_items)
        limit = self._limit if holds_lists(message) else min(self._limit, _SMALL_BYTES)

        def checked(data: bytes) -> Any:
            if data.startswith(_GZIP_MAGIC):
                data = _unpacked(data, limit, name)
            if len(data) > limit:
                raise InvalidField(name, f"has {len(data)} bytes; at most {limit} fit into one message")
            if len(data) > _SMALL_BYTES:
                shape.check(data)
            try:
                return decode(data)
            except (DecodeError, UnicodeDecodeError):
                raise _malformed(name) from None

        def read(data: bytes) -> Any:
            try:
                return checked(data)
            except InvalidField:
                if len(data) > _SMALL_BYTES or data.startswith(_GZIP_MAGIC):
                    self._freed.give_back_soon()
                raise

        return read

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


def _unpacked(data: bytes, limit: int, name: str) -> bytes:
    """The message that a gzip stream holds. grpc would unpack all of it, and compare its size with the limit then."""
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error:
        raise _malformed(name) from None
    if len(plain) > limit:
        raise InvalidField(name, f"has more than {limit} bytes, uncompressed; so many fit into one message")
    if not stream.eof or stream.unused_data:
        raise _malformed(name)
    return plain


def _malformed(name: str) -> InvalidField:
    return InvalidField(name, "is not a valid message of this type; strings must be valid UTF-8")


def _response_type(method: str) -> str:
    """Full name of the response message of the method ("/package.Service/Method")."""
    name = method.lstrip("/").replace("/", ".")
    try:
        return str(descriptor_pool.Default().FindMethodByName(name).output_type.full_name)
    except KeyError:
        return "response"
