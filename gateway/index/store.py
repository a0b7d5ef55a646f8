"""The documents of collections: written whole or not at all, found by vector, read by id."""

import asyncio
import hashlib
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from redis.exceptions import ResponseError

from gateway.index import scripts
from gateway.index.catalogue import Collection, shard_key, told
from gateway.index.documents import Digest, Document, Outcome
from gateway.index.problems import index_problem
from gateway.redis_client import Command, QueueTimeoutError, RedisClient, Unreachable
from services.runtime.errors import InvalidField, NotFound, Problem
from services.runtime.vectors import F32

_OUTCOMES = {1: Outcome.CREATED, 2: Outcome.UPDATED, 3: Outcome.UNCHANGED}
_GONE, _CHANGED = -1, -2
# Pipelines of one search for one server: Redis searches each connection's graphs one after the other, in threads.
_SHARDS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How hard a search tries. `effort`: least size of the candidate list (EF) of a search through one graph;
    `filter_effort`: most documents that a filtered search looks at in a shard (FILTER-EF). `replicas`: how many must
    have a write before it is acknowledged."""

    effort: int
    filter_effort: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document near the query, by its cosine."""

    id: str
    cosine: float


@dataclass(frozen=True, slots=True)
class Found:
    """The nearest documents, best first, and how many shards did not answer in time.

    `overloaded`: some were not asked, since too many searches wait for this process's connections.
    """

    candidates: Sequence[Candidate]
    missing_shards: int
    overloaded: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Documents by id, and how many shards could not be read."""

    documents: dict[str, Document]
    missing_shards: int


@dataclass(frozen=True, slots=True)
class Write:
    """A document to store. `vector` is float32 [dimensions], None where only its metadata changed."""

    document: Document
    digest: Digest
    vector: F32 | None


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

    async def digests(self, collection: Collection, ids: Sequence[str]) -> dict[str, Digest | None]:
        """What is remembered of some documents."""
        by_tag = self._by_tag(collection, ids)
        digests: dict[str, Digest | None] = {}
        with told():
            replies = await self._client.commands(
                [("HMGET", shard_key(tag, "h"), *mine) for tag, mine in by_tag.items()]
            )
            for mine, reply in zip(by_tag.values(), replies, strict=True):
                if isinstance(reply, Exception):
                    raise reply
                digests.update(zip(mine, map(Digest.unpack, reply), strict=True))
        return digests

    async def write(
        self, collection: Collection, writes: Sequence[Write]
    ) -> list[Outcome | Problem | ChangedMeanwhileError]:
        """Stores each document atomically; gives its outcome, or why it is not stored, in their order."""
        commands: list[Command] = []
        for write in writes:
            document, tag = write.document, self._tag(collection, write.document.id)
            commands.append(
                (
                    "EVAL",
                    scripts.WRITE,
                    4,
                    *(shard_key(tag, part) for part in "cvth"),
                    document.id,
                    collection.quantization.value,
                    write.digest.pack(),
                    document.text,
                    document.metadata,
                    b"" if write.vector is None else write.vector.astype("<f4").tobytes(),
                    "1" if self._settings.replicas else "0",
                    collection.links,
                )
            )
        try:
            replies = await self._writer.commands(commands, self._settings.replicas)
        except Unreachable as error:
            return [index_problem(error)] * len(writes)
        return [self._outcome(collection, reply) for reply in replies]

    def _outcome(self, collection: Collection, reply: object) -> Outcome | Problem | ChangedMeanwhileError:
        match reply:
            case Exception():
                return index_problem(reply)
            case int() if reply in _OUTCOMES:
                return _OUTCOMES[reply]
            case _ if reply == _CHANGED:
                return ChangedMeanwhileError()
            case _:
                return NotFound("collection", collection.name)

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Removes documents; gives how many there were."""
        commands: list[Command] = [
            ("EVAL", scripts.DELETE, 3, *(shard_key(tag, part) for part in "vth"), *mine)
            for tag, mine in self._by_tag(collection, ids).items()
        ]
        with told():
            replies = await self._writer.commands(commands, self._settings.replicas)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return sum(replies)

    async def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Document]:
        """The documents that exist, by id. Raises a Problem where a shard does not answer."""
        documents, failures = await self._fetch(collection, ids, text=True, metadata=True)
        for error in failures:
            raise index_problem(error) from error
        return documents

    async def read(
        self, collection: Collection, ids: Sequence[str], *, text: bool, metadata: bool, budget_s: float
    ) -> Read:
        """The documents that can be read within the budget, by id; without what is not asked for."""
        try:
            async with asyncio.timeout(budget_s):
                documents, failures = await self._fetch(collection, ids, text=text, metadata=metadata)
        except TimeoutError:
            return Read({}, len(self._by_tag(collection, ids)))
        return Read(documents, len(failures))

    async def _fetch(
        self, collection: Collection, ids: Sequence[str], *, text: bool, metadata: bool
    ) -> tuple[dict[str, Document], list[Exception]]:
        """Documents by id, and one failure for each shard that could not be read."""
        if not text and not metadata:
            return {id_: Document(id_, "") for id_ in ids}, []
        by_tag = self._by_tag(collection, ids)
        commands: list[Command] = []
        for tag, mine in by_tag.items():
            if text:
                commands.append(("HMGET", shard_key(tag, "t"), *mine))
            if metadata:
                commands += [("VGETATTR", shard_key(tag, "v"), id_) for id_ in mine]
        try:
            replies = iter(await self._client.commands(commands))
        except Unreachable as error:
            return {}, [error] * len(by_tag)
        documents: dict[str, Document] = {}
        failures: list[Exception] = []
        for mine in by_tag.values():
            texts = next(replies) if text else [b""] * len(mine)
            attributes = [next(replies) for _ in mine] if metadata else [b""] * len(mine)
            failed = next((reply for reply in (texts, *attributes) if isinstance(reply, Exception)), None)
            if failed is not None:
                failures.append(failed)
                continue
            for id_, words, attribute in zip(mine, texts, attributes, strict=True):
                if words is not None:
                    documents[id_] = Document(id_, words.decode(), (attribute or b"").decode())
        return documents, failures

    async def count(self, collections: Sequence[Collection]) -> list[int]:
        """The number of documents in each collection."""
        commands: list[Command] = [
            ("HLEN", shard_key(tag, "h")) for collection in collections for tag in collection.tags
        ]
        with told():
            replies = iter(await self._client.commands(commands))
            counts = []
            for collection in collections:
                shards = [next(replies) for _ in collection.tags]
                for reply in shards:
                    if isinstance(reply, Exception):
                        raise reply
                counts.append(sum(shards))
        return counts

    async def search(
        self, collection: Collection, vector: F32, count: int, filter_: str, filter_field: str, budget_s: float
    ) -> Found:
        """The `count` documents nearest to `vector` (float32 [dimensions]) that pass the filter.

        All shards are asked side by side. Raises InvalidField for a filter that does not parse, and a Problem where no
        shard answered within the budget.
        """
        query = self._query(len(collection.tags), vector, count, filter_)
        with told():
            replies = await self._client.commands(
                [("VSIM", shard_key(tag, "v"), *query) for tag in collection.tags],
                budget_s=budget_s,
                at_once=_SHARDS_AT_ONCE,
            )
        failures = [reply for reply in replies if isinstance(reply, Exception)]
        for error in failures:
            if isinstance(error, ResponseError) and "FILTER" in str(error):
                raise InvalidField(filter_field, str(error))
        if len(failures) == len(replies):
            raise index_problem(failures[0])
        good = chain.from_iterable(_candidates(reply) for reply in replies if not isinstance(reply, Exception))
        nearest = heapq.nsmallest(count, good, key=lambda found: (-found.cosine, found.id))
        return Found(nearest, len(failures), any(isinstance(error, QueueTimeoutError) for error in failures))

    def _query(self, shards: int, vector: F32, count: int, filter_: str) -> list[str | bytes | int]:
        """What each of `shards` is asked."""
        # One of n has about an n-th of the nearest, and finds its own the sooner for it.
        effort = max(count, math.ceil(max(self._settings.effort, 2 * count) / math.sqrt(shards)))
        query: list[str | bytes | int] = ["FP32", vector.astype("<f4").tobytes(), "WITHSCORES", "COUNT", count]
        query += ["EF", effort]
        if filter_:
            query += ["FILTER", filter_, "FILTER-EF", self._settings.filter_effort]
        return query

    def _by_tag(self, collection: Collection, ids: Sequence[str]) -> Mapping[str, list[str]]:
        by_tag: dict[str, list[str]] = {}
        for id_ in ids:
            by_tag.setdefault(self._tag(collection, id_), []).append(id_)
        return by_tag

    def _tag(self, collection: Collection, id_: str) -> str:
        """The shard of a document, for ever: by a hash of its id."""
        number = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "little")
        return collection.tags[number % len(collection.tags)]


def _candidates(flat: Sequence[bytes]) -> Iterator[Candidate]:
    """What a shard found. Redis gives (1 + cosine) / 2."""
    for id_, score in zip(flat[::2], flat[1::2], strict=True):
        yield Candidate(id_.decode(), min(1.0, max(-1.0, 2 * float(score) - 1)))
