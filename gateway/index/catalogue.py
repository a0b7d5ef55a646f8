"""Which collections there are, what each was built with, and the aliases that point at them.

All of it lies under one hash tag, so that creating, removing and switching are atomic. Keys of a collection are removed
after its name; the trash remembers them until that is done, whoever dies in between.
"""

import itertools
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum

from redis.exceptions import ResponseError

from gateway.index import scripts
from gateway.index.problems import index_problem, no_vector_sets
from gateway.redis_client import RedisClient, Unreachable
from services.runtime.errors import AlreadyExists, InvalidField, NotFound, Problem

_COLLECTIONS = "winnow:i:{catalogue}:collections"
_ALIASES = "winnow:i:{catalogue}:aliases"
_TRASH = "winnow:i:{catalogue}:trash"
_PROBE = "winnow:i:{catalogue}:probe"
_SHARDS_PER_MASTER = 3
# Of a node of the graph to others (M); on its lowest level twice as many. Twice Redis' default: searches find as much
# with less than half the effort.
_LINKS, _LINKS_ONCE = 32, 16
_SPREAD_TRIES = 10_000
# A creation that has not ended after this long never will.
_CREATION_S = 60.0

log = logging.getLogger("winnow.index")


class Quantization(Enum):
    """How a collection keeps its vectors; the value is what VADD calls it."""

    INT8 = "Q8"
    NONE = "NOQUANT"
    BINARY = "BIN"


@dataclass(frozen=True, slots=True)
class BuiltWith:
    """The embedding model of a collection."""

    name: str
    revision: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What is known of a collection. `tags` are the hash tags of its shards, `links` the M of their graphs."""

    name: str
    uid: str
    model: BuiltWith
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
            BuiltWith(**fields["model"]),
            fields["dimensions"],
            Quantization(fields["quantization"]),
            tuple(fields["tags"]),
            fields.get("links", _LINKS_ONCE),
            fields["created_ns"],
        )


def shard_key(tag: str, part: str) -> str:
    """A key of a shard: part "c", "v", "t" or "h"."""
    return f"winnow:i:{{{tag}}}:{part}"


@contextmanager
def told() -> Iterator[None]:
    """Turns what Redis fails with into a Problem."""
    try:
        yield
    except Unreachable as error:
        raise index_problem(error) from error


class Catalogue:
    """Collections and aliases."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._supported = False
        self._last: dict[str, Collection] = {}

    async def require(self) -> None:
        """Raises Precondition where this Redis has no vector sets."""
        if self._supported:
            return
        with told():
            await self._client.command("VADD", _PROBE, "VALUES", 1, 1, "probe")
        self._supported = True

    async def inspect(self) -> None:
        """Says in the log what is wrong with this Redis as the home of an index. Never raises."""
        try:
            await self.require()
            memory = await self._client.command("INFO", "memory")
        except Problem as problem:
            log.warning("collections cannot be used now: %s", problem.message)
            return
        except Unreachable as error:
            log.warning("the index's Redis cannot be inspected: %s", type(error).__name__)
            return
        policy = str(memory.get("maxmemory_policy", "")) if isinstance(memory, dict) else ""
        if policy.startswith("allkeys"):
            log.warning("maxmemory-policy %s lets Redis evict collections; use volatile-lfu or noeviction", policy)

    async def check_filter(self, field: str, expression: str) -> None:
        """Raises InvalidField, naming `field`, where a filter does not parse: empty shards would not tell."""
        try:
            await self._client.command("VSIM", _PROBE, "VALUES", 1, 1, "COUNT", 1, "FILTER", expression)
        except ResponseError as error:
            if "FILTER" in str(error):
                raise InvalidField(field, str(error)) from None
            if "unknown command" in str(error):
                raise no_vector_sets() from None
        except Unreachable:
            return  # the node of the catalogue is down: the shards will tell

    async def create(
        self, name: str, model: BuiltWith, dimensions: int, quantization: Quantization, shards: int | None
    ) -> Collection:
        """A new, empty collection; AlreadyExists where the name is taken by a collection or an alias."""
        with told():
            await self.require()
            await self._sweep()
            uid = secrets.token_hex(8)
            tags = self._tags(uid, shards or (1 if self._client.masters == 1 else self._default_shards()))
            made = Collection(name, uid, model, dimensions, quantization, tags, _LINKS, time.time_ns())
            await self._client.command("HSET", _TRASH, uid, _trash(tags, time.time() + _CREATION_S))
            await self._all([("SET", shard_key(tag, "c"), made.pack()) for tag in tags])
            done = await self._client.command(
                "EVAL", scripts.CREATE, 3, _COLLECTIONS, _ALIASES, _TRASH, name, uid, made.pack()
            )
            if not done:
                await self._drop(uid, tags)
                raise AlreadyExists("collection or alias", name)
        return made

    def _default_shards(self) -> int:
        return _SHARDS_PER_MASTER * self._client.masters

    def _tags(self, uid: str, shards: int) -> tuple[str, ...]:
        """Hash tags that spread the shards evenly over the masters of this moment."""
        names = sorted({self._client.master_of(str(number)) for number in range(100 * self._client.masters)})
        tags = []
        for shard in range(shards):
            wanted = names[shard % len(names)]
            candidates = (f"{uid}.{shard}.{number}" for number in itertools.count())
            tag = next(
                (tag for tag in itertools.islice(candidates, _SPREAD_TRIES) if self._client.master_of(tag) == wanted),
                f"{uid}.{shard}",
            )
            tags.append(tag)
        return tuple(tags)

    async def resolve(self, name: str, field: str = "collection") -> Collection:
        """The collection of a name or an alias, as of now; NotFound where there is none.

        Where the catalogue cannot be read, the one that this process saw last under that name.
        """
        await self.require()
        try:
            found = await self._client.command("EVAL", scripts.RESOLVE, 2, _COLLECTIONS, _ALIASES, name)
        except Unreachable as error:
            if name in self._last:
                return self._last[name]
            raise index_problem(error) from error
        if not found:
            self._last.pop(name, None)
            raise NotFound("collection", name)
        collection = Collection.unpack(found[0].decode(), found[1])
        self._last[name] = collection
        return collection

    async def listed(self) -> list[tuple[Collection, list[str]]]:
        """All collections with their aliases, both sorted."""
        with told():
            await self.require()
            collections, aliases = await self._client.command("EVAL", scripts.LIST, 2, _COLLECTIONS, _ALIASES)
        pointing: dict[bytes, list[str]] = {}
        for alias, target in zip(aliases[::2], aliases[1::2], strict=True):
            pointing.setdefault(target, []).append(alias.decode())
        pairs = zip(collections[::2], collections[1::2], strict=True)
        return [
            (Collection.unpack(name.decode(), packed), sorted(pointing.get(name, []))) for name, packed in sorted(pairs)
        ]

    async def remove(self, name: str) -> None:
        """Removes a collection with all it holds, and its aliases; NotFound where there is none of that name."""
        with told():
            await self.require()
            packed = await self._client.command("HGET", _COLLECTIONS, name)
            if packed is None:
                raise NotFound("collection", name)
            collection = Collection.unpack(name, packed)
            entry = _trash(collection.tags, time.time())
            done = await self._client.command(
                "EVAL", scripts.REMOVE, 3, _COLLECTIONS, _ALIASES, _TRASH, name, collection.uid, entry
            )
            if not done:
                raise NotFound("collection", name)
            await self._sweep()

    async def set_alias(self, alias: str, collection: str) -> None:
        """Points an alias at a collection; NotFound, or AlreadyExists where a collection has the alias's name."""
        with told():
            await self.require()
            done = await self._client.command("EVAL", scripts.SET_ALIAS, 2, _COLLECTIONS, _ALIASES, alias, collection)
        if done == -1:
            raise AlreadyExists("collection", alias)
        if done == 0:
            raise NotFound("collection", collection)

    async def delete_alias(self, alias: str) -> None:
        """Removes an alias; NotFound where there is none."""
        with told():
            await self.require()
            if not await self._client.command("HDEL", _ALIASES, alias):
                raise NotFound("alias", alias)

    async def _sweep(self) -> None:
        """Remove the keys of collections that are gone. What cannot be reached now is left for the next time."""
        trash: dict[bytes, bytes] = await self._client.command("HGETALL", _TRASH)
        for uid, packed in trash.items():
            entry = json.loads(packed)
            if entry["after"] > time.time():
                continue
            try:
                await self._drop(uid.decode(), entry["tags"])
            except Unreachable as error:
                log.warning("a removed collection is not yet cleaned up: %s", type(error).__name__)

    async def _drop(self, uid: str, tags: Sequence[str]) -> None:
        await self._all([("UNLINK", *(shard_key(tag, part) for part in "cvth")) for tag in tags])
        await self._client.command("HDEL", _TRASH, uid)

    async def _all(self, commands: Sequence[tuple[str, ...]]) -> None:
        for reply in await self._client.commands(commands):
            if isinstance(reply, Exception):
                raise reply


def _trash(tags: Sequence[str], after: float) -> str:
    return json.dumps({"tags": list(tags), "after": after})
