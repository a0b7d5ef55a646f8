"""Commands on the shards of a collection, and what their replies mean. The id of a document decides its shard."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from redis.exceptions import ResponseError

from gateway.index import lua
from gateway.index.collection import Collection, new_operation, shard_key, shard_keys
from gateway.index.documents import Digest, Document, Outcome
from gateway.index.errors import index_problem
from gateway.index.filters import attributes
from gateway.redis.client import Command
from services.api.vectors import F32
from services.runtime.errors import Problem

_OUTCOMES = {1: Outcome.CREATED, 2: Outcome.UPDATED, 3: Outcome.UNCHANGED}
DELETED, CHANGED = "d", "c"  # letters of lua.DELETE
# The last deletion is stored for each bucket of ids. Two ids in one bucket cost at most a second look-up; a shard with
# a deletion in every bucket takes about 1 MB more.
_BUCKETS = 1 << 14


@dataclass(frozen=True, slots=True)
class Known:
    """A document as a look-up saw it: its record and the last deletion in its bucket, b"" for none.

    `digest` is None if there is no valid record. `whole`: no part of the document is missing.
    """

    record: bytes = b""
    digest: Digest | None = None
    whole: bool = False
    deletion: bytes = b""


@dataclass(frozen=True, slots=True)
class Write:
    """A document to store. `vector` is float32 [dimensions], or None if at most its metadata changed.

    It is stored only if the document is still as `known` says. It may be repeated: it is stored once.
    """

    document: Document
    digest: Digest
    vector: F32 | None
    known: Known = Known()
    operation: bytes = field(default_factory=new_operation)


class ChangedMeanwhileError(Exception):
    """Another writer changed the document between the look-up and the write."""


def by_shard(collection: Collection, ids: Sequence[str]) -> Mapping[str, list[str]]:
    """Ids by the hash tag of their shard."""
    by_tag: dict[str, list[str]] = {}
    for id_ in ids:
        by_tag.setdefault(_shard(collection, id_), []).append(id_)
    return by_tag


def _shard(collection: Collection, id_: str) -> str:
    """The shard of a document, by a hash of its id that must never change."""
    number = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
    return collection.shards[number % len(collection.shards)]


def _bucket(id_: str) -> int:
    return zlib.crc32(id_.encode()) % _BUCKETS


def script(script: str, tag: str, arguments: Sequence[str | bytes | int] = ()) -> Command:
    """A script on one shard."""
    keys = shard_keys(tag)
    return ("EVAL", script, len(keys), *keys, *arguments)


def look(tag: str, ids: Sequence[str]) -> Command:
    """Looks documents up; `known` reads the reply."""
    return script(lua.LOOK, tag, list(chain.from_iterable((id_, _bucket(id_)) for id_ in ids)))


def known(reply: Sequence[Any]) -> list[Known]:
    """What a look-up saw of each document."""
    return [
        Known(record, Digest.of_record(record), bool(whole), deletion)
        for record, whole, deletion in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    ]


def write(collection: Collection, change: Write, replicas: int) -> Command:
    """Stores a document that is as a look-up saw it; `outcome` reads the reply."""
    document, seen = change.document, change.known
    keys = shard_keys(_shard(collection, document.id))
    confirming = seen.digest is not None and seen.digest.same(change.digest) and change.vector is None
    return (
        "EVAL",
        lua.WRITE,
        len(keys),
        *keys,
        document.id,
        seen.record,
        _bucket(document.id),
        seen.deletion,
        change.operation,
        change.digest.pack(),
        b"" if confirming else document.pack(),
        b"" if confirming else attributes(document.metadata),
        b"" if change.vector is None else change.vector.astype("<f4").tobytes(),
        collection.quantization.value,
        collection.m,
        "1" if replicas else "0",
    )


def outcome(reply: object) -> Outcome | Problem | ChangedMeanwhileError:
    """What a reply to `write` says."""
    match reply:
        case Exception():
            return index_problem(reply)
        case int() if reply in _OUTCOMES:
            return _OUTCOMES[reply]
        case _:  # the next look-up finds out: another version, a lost marker, or a removed collection
            return ChangedMeanwhileError()


def delete(tag: str, documents: Sequence[tuple[str, Known]]) -> Command:
    """Deletes documents that are as a look-up saw them; the reply is a letter for each, `DELETED` or `CHANGED`."""
    operation = new_operation()
    keys = [*shard_keys(tag), shard_key(tag, f"answer:{operation.hex()}")]
    seen: list[str | bytes | int] = []
    for id_, found in documents:
        seen += (id_, _bucket(id_), found.record)
    return ("EVAL", lua.DELETE, len(keys), *keys, operation, *seen)


def is_wrong_type(error: object) -> bool:
    """Whether a key of a shard has a value of another type: that part of the shard is lost."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")
