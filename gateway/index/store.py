"""The documents of collections: written whole or not at all, found by vector, read by id."""

import hashlib
import heapq
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from redis.exceptions import ResponseError

from gateway.index import lua
from gateway.index.catalogue import restore
from gateway.index.collection import Collection, Quantization, new_operation, shard_key, shard_keys
from gateway.index.documents import Digest, Document, Outcome
from gateway.index.errors import index_problem, redis_errors
from gateway.index.filters import Filter, attributes
from gateway.redis.client import Command, QueueTimeoutError, RedisClient, Unreachable
from services.api.vectors import F32
from services.runtime.errors import InvalidField, Problem, UpstreamUnavailable

_OUTCOMES = {1: Outcome.CREATED, 2: Outcome.UPDATED, 3: Outcome.UNCHANGED}
_DELETED, _CHANGED = "d", "c"  # letters of lua.DELETE
# Deletions of a shard are remembered by bucket of ids. Two ids in one cost a second look at most; a shard in which all
# buckets have seen a deletion takes about 1 MB more.
_BUCKETS = 1 << 14
_TRIES = 5
# Pipelines of one search for one server: Redis searches each connection's graphs one after the other, in threads.
_SHARDS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How hard a search tries. `ef`: least size of the candidate list (EF) of a search through one graph;
    `filter_ef`: most documents that a filtered search looks at in a shard (FILTER-EF). `replicas`: how many must
    have a write before it is acknowledged."""

    ef: int
    filter_ef: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document near the query, by its cosine."""

    id: str
    cosine: float


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest documents, best first; how many shards did not answer in time, and how many have lost documents or
    parts of them.

    `overloaded`: some were not asked, since too many searches wait for this process's connections.
    """

    candidates: Sequence[Candidate]
    missing_shards: int
    incomplete_shards: int
    overloaded: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Documents by id, how many shards could not be read, and whether a document was found damaged."""

    documents: dict[str, Document]
    missing_shards: int
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A document as a look-up saw it: its record and the last deletion near its id, b"" for none.

    `digest` is None where there is no record that can be read. `whole`: every part of the document is there.
    """

    record: bytes = b""
    digest: Digest | None = None
    whole: bool = False
    deletion: bytes = b""


@dataclass(frozen=True, slots=True)
class Write:
    """A document to store. `vector` is float32 [dimensions], None where at most its metadata changed.

    It is stored only while the document is as `known` says; repeated, it is stored once.
    """

    document: Document
    digest: Digest
    vector: F32 | None
    known: Known = Known()
    operation: bytes = field(default_factory=new_operation)


class ChangedMeanwhileError(Exception):
    """Somebody else changed the document between our look and our write."""


class Store:
    """Documents by collection."""

    def __init__(self, client: RedisClient, writer: RedisClient, settings: StoreSettings) -> None:
        self._client = client
        self._writer = writer  # its own connections and time-out: a write waits longer than a search may
        self._settings = settings

    @property
    def confirms(self) -> bool:
        """Whether an unchanged document must be written all the same, so that its replicas are known to have it."""
        return self._settings.replicas > 0

    async def look(self, collection: Collection, ids: Sequence[str]) -> dict[str, Known]:
        """What is there of some documents. NotFound where the collection has been removed.

        A shard that has lost its marker gets it back, as nothing can be written without.
        """
        known: dict[str, Known] = {}
        with redis_errors():
            for _ in range(_TRIES):
                left = self._by_tag(collection, [id_ for id_ in ids if id_ not in known])
                replies = await self._client.commands([_look(tag, mine) for tag, mine in left.items()])
                unmarked = []
                for (tag, mine), reply in zip(left.items(), replies, strict=True):
                    match reply:
                        case Exception():
                            raise reply
                        case lua.GONE:
                            unmarked.append(tag)
                        case _:
                            known.update(zip(mine, map(_known, reply[::3], reply[1::3], reply[2::3]), strict=True))
                if not unmarked:
                    return known
                await restore(self._client, collection, unmarked)
        raise UpstreamUnavailable("index", "loses its keys as they are written; look at its maxmemory-policy")

    async def write(
        self, collection: Collection, writes: Sequence[Write]
    ) -> list[Outcome | Problem | ChangedMeanwhileError]:
        """Stores each document atomically; gives its outcome, or why it is not stored, in their order."""
        commands = [self._write(collection, write) for write in writes]
        try:
            replies = await self._writer.commands(commands, self._settings.replicas)
        except Unreachable as error:
            return [index_problem(error)] * len(writes)
        return [_outcome(reply) for reply in replies]

    def _write(self, collection: Collection, write: Write) -> Command:
        document, known = write.document, write.known
        keys = shard_keys(self._tag(collection, document.id))
        confirming = known.digest is not None and known.digest.same(write.digest) and write.vector is None
        return (
            "EVAL",
            lua.WRITE,
            len(keys),
            *keys,
            document.id,
            known.record,
            _bucket(document.id),
            known.deletion,
            write.operation,
            write.digest.pack(),
            b"" if confirming else document.pack(),
            b"" if confirming else attributes(document.metadata),
            b"" if write.vector is None else write.vector.astype("<f4").tobytes(),
            collection.quantization.value,
            collection.m,
            "1" if self._settings.replicas else "0",
        )

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Removes documents; gives how many there were. NotFound where the collection has been removed.

        A document that is written while it is being deleted is looked at again.
        """
        deleted, left = 0, list(ids)
        with redis_errors():
            for _ in range(_TRIES):
                known = await self.look(collection, left)
                by_tag = self._by_tag(collection, left)
                commands = [_delete(tag, [(id_, known[id_]) for id_ in mine]) for tag, mine in by_tag.items()]
                replies = await self._writer.commands(commands, self._settings.replicas)
                left = []
                for mine, reply in zip(by_tag.values(), replies, strict=True):
                    if isinstance(reply, Exception):
                        raise reply
                    # Without a marker nothing was deleted: the next look makes it again.
                    letters = _CHANGED * len(mine) if reply == lua.GONE else reply.decode()
                    deleted += letters.count(_DELETED)
                    left += [id_ for id_, letter in zip(mine, letters, strict=True) if letter == _CHANGED]
                if not left:
                    return deleted
        raise UpstreamUnavailable("index", "has other writers changing the same documents")

    async def get(self, collection: Collection, ids: Sequence[str]) -> tuple[dict[str, Document], set[str]]:
        """The documents that can be read, by id, and the ids of those that have been lost wholly or in part.

        Of the others there are none. Raises a Problem where a shard does not answer.
        """
        with redis_errors():
            documents, failures, _ = await self._fetch(collection, ids)
            for error in failures:
                raise error
            by_tag = self._by_tag(collection, [id_ for id_ in ids if id_ not in documents])
            replies = await self._client.commands([_script(lua.MISSING, tag, mine) for tag, mine in by_tag.items()])
            lost: set[str] = set()
            for mine, reply in zip(by_tag.values(), replies, strict=True):
                if isinstance(reply, Exception):
                    raise reply
                for id_, value in zip(mine, reply, strict=True):
                    # It may have been written since.
                    document = Document.unpack(id_, value) if isinstance(value, bytes) else None
                    if document is not None:
                        documents[id_] = document
                    elif value != 0:
                        lost.add(id_)
        return documents, lost

    async def read(
        self, collection: Collection, ids: Sequence[str], *, text: bool, metadata: bool, budget_s: float
    ) -> Read:
        """The documents that can be read within the budget, by id; empty ones where neither is asked for."""
        if not text and not metadata:
            return Read({id_: Document(id_, "") for id_ in ids}, 0)
        try:
            documents, failures, damaged = await self._fetch(collection, ids, budget_s)
        except Unreachable:
            return Read({}, len(self._by_tag(collection, ids)))
        return Read(documents, len(failures), damaged)

    async def _fetch(
        self, collection: Collection, ids: Sequence[str], budget_s: float | None = None
    ) -> tuple[dict[str, Document], list[Exception], bool]:
        """Documents by id, one failure for each shard that could not be read, and whether a value was no document."""
        by_tag = self._by_tag(collection, ids)
        replies = await self._client.commands(
            [("HMGET", shard_key(tag, "t"), *mine) for tag, mine in by_tag.items()], budget_s=budget_s
        )
        documents: dict[str, Document] = {}
        failures: list[Exception] = []
        damaged = False
        for mine, reply in zip(by_tag.values(), replies, strict=True):
            if isinstance(reply, Exception):
                if _wrong_type(reply):
                    damaged = True
                else:
                    failures.append(reply)
                continue
            for id_, value in zip(mine, reply, strict=True):
                document = Document.unpack(id_, value)
                if document is not None:
                    documents[id_] = document
                elif value is not None:
                    damaged = True
        return documents, failures, damaged

    async def count(self, collections: Sequence[Collection]) -> list[int]:
        """The number of whole documents in each collection: what a search can find and read."""
        commands = [_script(lua.CENSUS, tag) for collection in collections for tag in collection.shards]
        with redis_errors():
            replies = iter(await self._client.commands(commands))
            counts = []
            for collection in collections:
                shards = [next(replies) for _ in collection.shards]
                for reply in shards:
                    if isinstance(reply, Exception):
                        raise reply
                counts.append(sum(max(0, min(held)) for _, *held in shards))
        return counts

    async def search(
        self,
        collection: Collection,
        vector: F32,
        count: int,
        filter_: Filter | None,
        filter_field: str,
        budget_s: float,
    ) -> Found:
        """The `count` documents nearest to `vector` (float32 [dimensions]) that pass the filter.

        All shards are asked side by side. Raises InvalidField for a filter that does not parse, and a Problem where no
        shard answered within the budget.
        """
        query = self._query(len(collection.shards), vector, count, filter_)
        # Searches first: so they are spread evenly over the pipelines.
        commands: list[Command] = [("VSIM", shard_key(tag, "v"), *query) for tag in collection.shards]
        commands += [_script(lua.CENSUS, tag) for tag in collection.shards]
        with redis_errors():
            replies = await self._client.commands(commands, budget_s=budget_s, at_once=_SHARDS_AT_ONCE)
        searched, counted = replies[: len(collection.shards)], replies[len(collection.shards) :]
        searched = [[] if _wrong_type(reply) else reply for reply in searched]
        failures = [reply for reply in searched if isinstance(reply, Exception)]
        for error in failures:
            if filter_ and isinstance(error, ResponseError) and "FILTER" in str(error):
                raise InvalidField(filter_field, filter_.refused(str(error)))
        if len(failures) == len(searched):
            raise index_problem(failures[0])
        good = chain.from_iterable(
            _candidates(reply, collection.quantization) for reply in searched if not isinstance(reply, Exception)
        )
        nearest = heapq.nsmallest(count, good, key=lambda found: (-found.cosine, found.id))
        incomplete = sum(not _whole(census) for census in counted if not isinstance(census, Exception))
        overloaded = any(isinstance(error, QueueTimeoutError) for error in failures)
        return Found(nearest, len(failures), incomplete, overloaded)

    def _query(self, shards: int, vector: F32, count: int, filter_: Filter | None) -> list[str | bytes | int]:
        """What each of `shards` is asked."""
        # One of n has about an n-th of the nearest, and finds its own the sooner for it.
        ef = max(count, math.ceil(max(self._settings.ef, 2 * count) / math.sqrt(shards)))
        query: list[str | bytes | int] = ["FP32", vector.astype("<f4").tobytes(), "WITHSCORES", "COUNT", count]
        query += ["EF", ef]
        if filter_:
            query += ["FILTER", filter_.redis, "FILTER-EF", self._settings.filter_ef]
        return query

    def _by_tag(self, collection: Collection, ids: Sequence[str]) -> Mapping[str, list[str]]:
        by_tag: dict[str, list[str]] = {}
        for id_ in ids:
            by_tag.setdefault(self._tag(collection, id_), []).append(id_)
        return by_tag

    def _tag(self, collection: Collection, id_: str) -> str:
        """The shard of a document, for ever: by a hash of its id."""
        number = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
        return collection.shards[number % len(collection.shards)]


def _candidates(flat: Sequence[bytes], quantization: Quantization) -> Iterator[Candidate]:
    """What a shard found."""
    for id_, score in zip(flat[::2], flat[1::2], strict=True):
        yield Candidate(id_.decode(), _cosine(quantization, float(score)))


def _cosine(quantization: Quantization, score: float) -> float:
    """The cosine behind a score of Redis, which is (1 + similarity) / 2.

    The similarity of BINARY vectors is 1 - 2 h, h being the share of dimensions whose signs differ. Two vectors at an
    angle a differ in the sign of a random projection with probability a / pi (Goemans and Williamson 1995; Charikar
    2002), so that cos(pi h) = sin(pi / 2 * similarity) estimates their cosine.
    """
    similarity = min(1.0, max(-1.0, 2 * score - 1))
    return math.sin(math.pi / 2 * similarity) if quantization is Quantization.BINARY else similarity


def _bucket(id_: str) -> int:
    return zlib.crc32(id_.encode()) % _BUCKETS


def _script(script: str, tag: str, arguments: Sequence[str | bytes | int] = ()) -> Command:
    """A script on one shard."""
    keys = shard_keys(tag)
    return ("EVAL", script, len(keys), *keys, *arguments)


def _look(tag: str, ids: Sequence[str]) -> Command:
    return _script(lua.LOOK, tag, list(chain.from_iterable((id_, _bucket(id_)) for id_ in ids)))


def _delete(tag: str, documents: Sequence[tuple[str, Known]]) -> Command:
    operation = new_operation()
    keys = [*shard_keys(tag), shard_key(tag, f"answer:{operation.hex()}")]
    seen: list[str | bytes | int] = []
    for id_, known in documents:
        seen += (id_, _bucket(id_), known.record)
    return ("EVAL", lua.DELETE, len(keys), *keys, operation, *seen)


def _known(record: bytes, whole: int, deletion: bytes) -> Known:
    return Known(record, Digest.of_record(record), bool(whole), deletion)


def _outcome(reply: object) -> Outcome | Problem | ChangedMeanwhileError:
    match reply:
        case Exception():
            return index_problem(reply)
        case int() if reply in _OUTCOMES:
            return _OUTCOMES[reply]
        case _:  # the next look tells which: another version, a marker that was lost, or no collection any more
            return ChangedMeanwhileError()


def _whole(census: Sequence[int]) -> bool:
    """Whether nothing of a shard is lost, by the answer of lua.CENSUS."""
    return 0 <= min(census) == max(census)


def _wrong_type(error: object) -> bool:
    """Another type of value is where a part of a shard should be: that part is lost."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")
