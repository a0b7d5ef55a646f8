"""The description of a collection in the catalogue, and the keys of its shards."""

import json
import secrets
from dataclasses import asdict, dataclass
from enum import Enum

from gateway.index.documents import OPERATION_BYTES

_SHARD_PARTS = "cvthd"
# M of the collections that were stored before M was part of the description.
_FORMER_M = 16


class Quantization(Enum):
    """How a collection stores its vectors; the value is the option of VADD."""

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
    """The description of a collection. `shards` are the hash tags of its shards, `m` is the M of their graphs."""

    name: str
    uid: str
    model: ModelRef
    dimensions: int
    quantization: Quantization
    shards: tuple[str, ...]
    m: int
    created_ns: int

    def pack(self) -> str:
        """The stored form: JSON, without the name. Its names stay as they are, since existing collections have them."""
        return json.dumps(
            {
                "uid": self.uid,
                "model": asdict(self.model),
                "dimensions": self.dimensions,
                "quantization": self.quantization.value,
                "tags": self.shards,
                "links": self.m,
                "created_ns": self.created_ns,
            }
        )

    @classmethod
    def unpack(cls, name: str, packed: bytes) -> "Collection":
        """From the stored form."""
        fields = json.loads(packed)
        return cls(
            name,
            fields["uid"],
            ModelRef(**fields["model"]),
            fields["dimensions"],
            Quantization(fields["quantization"]),
            tuple(fields["tags"]),
            fields.get("links", _FORMER_M),
            fields["created_ns"],
        )


def shard_key(tag: str, part: str) -> str:
    """A key of a shard. `part`: "c", "v", "t", "h" or "d"."""
    return f"winnow:i:{{{tag}}}:{part}"


def shard_keys(tag: str) -> list[str]:
    """All keys of a shard, in the order of the scripts."""
    return [shard_key(tag, part) for part in _SHARD_PARTS]


def new_operation() -> bytes:
    """A random id for one change."""
    return secrets.token_bytes(OPERATION_BYTES)
