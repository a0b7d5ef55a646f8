"""A document as the index keeps it."""

import hashlib
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

MAX_METADATA_BYTES = 64 << 10
_MAX_DEPTH = 32
_DIGEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Document:
    """`metadata` is the JSON object as its author wrote it, "" for none."""

    id: str
    text: str
    metadata: str = ""


class Outcome(Enum):
    """What an upsert did to a document."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Digest:
    """What is remembered of a document, to tell whether it changed."""

    text: bytes
    metadata: bytes
    truncated: bool = False

    @classmethod
    def of(cls, document: Document) -> "Digest":
        """The digest of a document."""
        return cls(_hash(document.text), _hash(document.metadata))

    def pack(self) -> bytes:
        """As bytes."""
        return bytes((_DIGEST_VERSION, self.truncated)) + self.text + self.metadata

    @classmethod
    def unpack(cls, value: bytes | None) -> "Digest | None":
        """From bytes; None where there are none, or from another version."""
        if value is None or len(value) != 34 or value[0] != _DIGEST_VERSION:
            return None
        return cls(value[2:18], value[18:34], bool(value[1]))

    def same(self, other: "Digest") -> bool:
        """True where text and metadata are the same."""
        return self.text == other.text and self.metadata == other.metadata


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def metadata_error(metadata: str) -> str | None:
    """What is wrong with a metadata string, None where nothing is. It must be strict JSON: NaN is none."""
    if len(metadata.encode()) > MAX_METADATA_BYTES:
        return f"has more than {MAX_METADATA_BYTES} bytes of UTF-8; keep what is not filtered on elsewhere"
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
    raise ValueError(f"{name} is no JSON number")


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
