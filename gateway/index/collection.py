"""A collection as the catalogue describes it, and the keys of its shards."""

import json
import secrets
from dataclasses import asdict, dataclass
from enum import Enum

from gateway.index.documents import OPERATION_BYTES

_SHARD_PARTS = "cvthd"
# M of the graphs of collections that were described before it was written down.
_M_ONCE = 16


class Quantization(Enum):
    """How a collection keeps its vectors; the value is what VADD calls it."""

    INT8 = "Q8"
    NONE = "NOQUANT"
    BINARY = "BIN"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The embedding model of a collection."""

    name: str
    revision: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What is known of a collection. `tags` are the hash tags of its shards, `links` the M of their graphs."""

    name: str
    uid: str
    model: ModelRef
    dimensions: int
    quantization: Quantization
    tags: tuple[str, ...]
    links: int
    created_ns: int

    def pack(self) -> str:
        """As JSON, without the name."""
        fields = asdict(self)
        del fields["name"]
        return json.dumps({**fields, "quantization": self.quantization.value})

    @classmethod
    def unpack(cls, name: str, packed: bytes) -> "Collection":
        """From JSON."""
        fields = json.loads(packed)
        return cls(
            name,
            fields["uid"],
            ModelRef(**fields["model"]),
            fields["dimensions"],
            Quantization(fields["quantization"]),
            tuple(fields["tags"]),
            fields.get("links", _M_ONCE),
            fields["created_ns"],
        )


def shard_key(tag: str, part: str) -> str:
    """A key of a shard: part "c", "v", "t", "h" or "d"."""
    return f"winnow:i:{{{tag}}}:{part}"


def shard_keys(tag: str) -> list[str]:
    """All keys of a shard, as scripts take them."""
    return [shard_key(tag, part) for part in _SHARD_PARTS]


def new_operation() -> bytes:
    """A random id for one change."""
    return secrets.token_bytes(OPERATION_BYTES)
