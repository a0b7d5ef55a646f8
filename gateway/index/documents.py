"""A document as the index stores it."""

import hashlib
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

MAX_METADATA_BYTES = 64 << 10
_MAX_DEPTH = 32
_DIGEST_VERSION = 2
_DIGEST_BYTES = 38
OPERATION_BYTES = 8
_RECORD_BYTES = _DIGEST_BYTES + OPERATION_BYTES + 1
_DOCUMENT_VERSION = b"\xff\x01"  # no text begins so: 0xff does not occur in UTF-8
_DOCUMENT_HEAD = len(_DOCUMENT_VERSION) + 4


@dataclass(frozen=True, slots=True)
class Document:
    """`metadata` is the JSON object as the caller wrote it, "" for none."""

    id: str
    text: str
    metadata: str = ""

    def pack(self) -> bytes:
        """Text and metadata as one value, so that both are read as of one version."""
        metadata = self.metadata.encode()
        return _DOCUMENT_VERSION + len(metadata).to_bytes(4) + metadata + self.text.encode()

    @classmethod
    def unpack(cls, id_: str, value: bytes | None) -> "Document | None":
        """From bytes; None if there are none, or if `pack` did not write them."""
        if value is None or not value.startswith(_DOCUMENT_VERSION) or len(value) < _DOCUMENT_HEAD:
            return None
        text = _DOCUMENT_HEAD + int.from_bytes(value[len(_DOCUMENT_VERSION) : _DOCUMENT_HEAD])
        try:
            return cls(id_, value[text:].decode(), value[_DOCUMENT_HEAD:text].decode()) if text <= len(value) else None
        except UnicodeDecodeError:
            return None


class Outcome(Enum):
    """What an upsert did to a document."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a document, which shows whether it changed. `size`: bytes of the packed document.

    A stored record begins with it; the operation that wrote the document and its outcome follow (`lua.WRITE`).
    """

    text: bytes
    metadata: bytes
    truncated: bool = False
    size: int = 0

    @classmethod
    def of(cls, document: Document) -> "Digest":
        """The digest of a document."""
        text, metadata = document.text.encode(), document.metadata.encode()
        return cls(_hash(text), _hash(metadata), size=_DOCUMENT_HEAD + len(metadata) + len(text))

    def pack(self) -> bytes:
        """As bytes: version, truncated, size (4, big-endian), hashes of text and metadata (16 each)."""
        return bytes((_DIGEST_VERSION, self.truncated)) + self.size.to_bytes(4) + self.text + self.metadata

    @classmethod
    def unpack(cls, value: bytes | None) -> "Digest | None":
        """From bytes; None if there are none, or if they are of another version."""
        if value is None or len(value) != _DIGEST_BYTES or value[0] != _DIGEST_VERSION:
            return None
        return cls(value[6:22], value[22:], bool(value[1]), int.from_bytes(value[2:6]))

    @classmethod
    def of_record(cls, record: bytes) -> "Digest | None":
        """From a stored record; None if it is empty, invalid, or of another version."""
        return cls.unpack(record[:_DIGEST_BYTES]) if len(record) == _RECORD_BYTES else None

    def same(self, other: "Digest") -> bool:
        """Whether text and metadata are the same."""
        return self.text == other.text and self.metadata == other.metadata


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def metadata_error(metadata: str) -> str | None:
    """What is wrong with a metadata string, or None. It must be strict JSON, without NaN."""
    if len(metadata.encode()) > MAX_METADATA_BYTES:
        return f"has more than {MAX_METADATA_BYTES} bytes of UTF-8; store what is not filtered on elsewhere"
    try:
        value = parse_metadata(metadata)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}" if isinstance(error, ValueError) else "is nested too deeply"
    if not isinstance(value, dict):
        return "is not a JSON object"
    return "is nested too deeply" if _depth(value) > _MAX_DEPTH else None


def parse_metadata(metadata: str) -> Any:
    """The JSON value of a metadata string, {} for none; every number is a float. Raises ValueError, RecursionError."""
    if not metadata:
        return {}
    return json.loads(metadata, parse_constant=_refuse, parse_float=_number, parse_int=_integer)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _number(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _integer(literal: str) -> float:
    return _number(literal)  # Redis reads all numbers as float64, and Python refuses to parse very long integers


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
    return depth
