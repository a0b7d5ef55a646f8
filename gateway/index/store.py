"""The documents of collections: written atomically, found by vector, read by id."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from gateway.index import commands, lua, vector_search
from gateway.index.catalogue import restore
from gateway.index.collection import Collection, shard_key
from gateway.index.commands import ChangedMeanwhileError, Known, Write
from gateway.index.documents import Document, Outcome
from gateway.index.errors import index_problem, redis_errors
from gateway.index.filters import Filter
from gateway.index.vector_search import Found
from gateway.redis.client import Command, RedisClient, Unreachable
from services.api.vectors import F32
from services.runtime.errors import InvalidField, Problem, UpstreamUnavailable

_TRIES = 5
# Pipelines of one search to one server. Redis runs the searches of a connection one after the other, and those of
# several connections in threads.
_SHARDS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`ef`: minimum EF of a search (size of the candidate list). `filter_ef`: FILTER-EF, the maximum documents of a
    shard that a filter is tried on. `replicas`: how many must have a write before it is acknowledged."""

    ef: int
    filter_ef: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Read:
    """Documents by id, how many shards could not be read, and whether a document was damaged."""

    documents: dict[str, Document]
    missing_shards: int
    damaged: bool = False


class Store:
    """The documents of all collections."""

    def __init__(self, client: RedisClient, writer: RedisClient, settings: StoreSettings) -> None:
        self._client = client
        self._writer = writer  # with connections and a timeout of its own: a write may take longer than a search
        self._settings = settings

    @property
    def confirms(self) -> bool:
        """Whether an unchanged document must be written too, to confirm that its replicas have it."""
        return self._settings.replicas > 0

    async def look(self, collection: Collection, ids: Sequence[str]) -> dict[str, Known]:
        """Looks documents up. NotFound if the collection has been removed.

        A shard that has lost its marker gets a new one, since nothing can be written without it.
        """
        known: dict[str, Known] = {}
        with redis_errors():
            for _ in range(_TRIES):
                left = commands.by_shard(collection, [id_ for id_ in ids if id_ not in known])
                replies = await self._client.commands([commands.look(tag, mine) for tag, mine in left.items()])
                unmarked = []
                for (tag, mine), reply in zip(left.items(), replies, strict=True):
                    match reply:
                        case Exception():
                            raise reply
                        case lua.GONE:
                            unmarked.append(tag)
                        case _:
                            known.update(zip(mine, commands.known(reply), strict=True))
                if not unmarked:
                    return known
                await restore(self._client, collection, unmarked)
        raise UpstreamUnavailable("index", "loses keys while they are written; check its maxmemory-policy")

    async def write(
        self, collection: Collection, writes: Sequence[Write]
    ) -> list[Outcome | Problem | ChangedMeanwhileError]:
        """Stores each document atomically; returns for each, in order, its outcome or why it is not stored."""
        replicas = self._settings.replicas
        changes = [commands.write(collection, write, replicas) for write in writes]
        try:
            replies = await self._writer.commands(changes, replicas)
        except Unreachable as error:
            return [index_problem(error)] * len(writes)
        return [commands.outcome(reply) for reply in replies]

    async def delete(self, collection: Collection, ids: Sequence[str]) -> int:
        """Deletes documents; returns how many existed. NotFound if the collection has been removed.

        A document that is written meanwhile is looked up and deleted again.
        """
        deleted, left = 0, list(ids)
        with redis_errors():
            for _ in range(_TRIES):
                known = await self.look(collection, left)
                by_tag = commands.by_shard(collection, left)
                deletions = [commands.delete(tag, [(id_, known[id_]) for id_ in mine]) for tag, mine in by_tag.items()]
                replies = await self._writer.commands(deletions, self._settings.replicas)
                left = []
                for mine, reply in zip(by_tag.values(), replies, strict=True):
                    if isinstance(reply, Exception):
                        raise reply
                    # Without a marker nothing was deleted: the next look-up creates it again.
                    letters = commands.CHANGED * len(mine) if reply == lua.GONE else reply.decode()
                    deleted += letters.count(commands.DELETED)
                    left += [id_ for id_, letter in zip(mine, letters, strict=True) if letter == commands.CHANGED]
                if not left:
                    return deleted
        raise UpstreamUnavailable("index", "has concurrent changes of the same documents")

    async def get(self, collection: Collection, ids: Sequence[str]) -> tuple[dict[str, Document], set[str]]:
        """The documents that can be read, by id, and the ids of those that the index has lost, wholly or in part.

        The rest do not exist. Raises a Problem if a shard does not answer.
        """
        with redis_errors():
            documents, failures, _ = await self._fetch(collection, ids)
            for error in failures:
                raise error
            by_tag = commands.by_shard(collection, [id_ for id_ in ids if id_ not in documents])
            replies = await self._client.commands(
                [commands.script(lua.MISSING, tag, mine) for tag, mine in by_tag.items()]
            )
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
        """The documents that can be read within the budget, by id; empty ones without `text` and `metadata`."""
        if not text and not metadata:
            return Read({id_: Document(id_, "") for id_ in ids}, 0)
        try:
            documents, failures, damaged = await self._fetch(collection, ids, budget_s)
        except Unreachable:
            return Read({}, len(commands.by_shard(collection, ids)))
        return Read(documents, len(failures), damaged)

    async def _fetch(
        self, collection: Collection, ids: Sequence[str], budget_s: float | None = None
    ) -> tuple[dict[str, Document], list[Exception], bool]:
        """Documents by id, an error for each shard that could not be read, and whether a value was not a document."""
        by_tag = commands.by_shard(collection, ids)
        replies = await self._client.commands(
            [("HMGET", shard_key(tag, "t"), *mine) for tag, mine in by_tag.items()], budget_s=budget_s
        )
        documents: dict[str, Document] = {}
        failures: list[Exception] = []
        damaged = False
        for mine, reply in zip(by_tag.values(), replies, strict=True):
            if isinstance(reply, Exception):
                if commands.is_wrong_type(reply):
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
        """The number of complete documents in each collection: those that a search can find and read."""
        censuses = [commands.script(lua.CENSUS, tag) for collection in collections for tag in collection.shards]
        with redis_errors():
            replies = iter(await self._client.commands(censuses))
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

        All shards are searched concurrently. Raises InvalidField for a filter that does not parse, and a Problem if no
        shard answered within the budget.
        """
        shards, settings = collection.shards, self._settings
        query = vector_search.query(vector, count, filter_, settings.ef, settings.filter_ef, len(shards))
        # Searches first, so that they are spread evenly over the pipelines.
        searches: list[Command] = [("VSIM", shard_key(tag, "v"), *query) for tag in shards]
        censuses = [commands.script(lua.CENSUS, tag) for tag in shards]
        with redis_errors():
            replies = await self._client.commands(searches + censuses, budget_s=budget_s, at_once=_SHARDS_AT_ONCE)
        searched = [[] if commands.is_wrong_type(reply) else reply for reply in replies[: len(shards)]]
        failures = [reply for reply in searched if isinstance(reply, Exception)]
        for error in failures:
            if filter_ and isinstance(error, ResponseError) and "FILTER" in str(error):
                raise InvalidField(filter_field, filter_.refused(str(error)))
        if len(failures) == len(searched):
            raise index_problem(failures[0])
        return vector_search.merged(count, searched, replies[len(shards) :], collection.quantization)
