"""The collections, the model that each was built with, and the aliases that point at them.

All of it has one hash tag, so that to create, remove or switch is atomic. The keys of a collection are created before
its name and removed after it. Until then they are listed in the trash, so that a crash in between leaves no keys
behind. `lua` describes what happens to a change that is sent twice, or late.
"""

import itertools
import json
import logging
import secrets
import time
from collections.abc import Sequence

from gateway.index import lua
from gateway.index.collection import Collection, ModelRef, Quantization, new_operation, shard_keys
from gateway.index.errors import index_problem, redis_errors
from gateway.index.filters import Filter, FilterError, translate
from gateway.redis.client import Command, RedisClient, Unreachable
from services.runtime.errors import AlreadyExists, InvalidField, NotFound, Problem, UpstreamUnavailable

_COLLECTIONS = "winnow:i:{catalogue}:collections"
_ALIASES = "winnow:i:{catalogue}:aliases"
_TRASH = "winnow:i:{catalogue}:trash"
_ALIASES_VERSION = "winnow:i:{catalogue}:aliases-version"  # the last operation that changed one
_PROBE = "winnow:i:{catalogue}:probe"
_SHARDS_PER_MASTER = 3
# Maximum links of a node of the graph (M); twice as many on the lowest level. Twice Redis' default: the same recall
# with less than half the EF.
_M = 32
_SPREAD_TRIES = 10_000
# A creation that takes longer than this starts again: its keys may have been removed.
_CREATION_S = 60
_TRIES = 5

log = logging.getLogger("winnow.index")


class Catalogue:
    """Collections and aliases."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._supported = False
        self._last: dict[str, Collection] = {}

    async def require(self, budget_s: float | None = None) -> None:
        """Raises Precondition if this Redis has no vector sets."""
        if self._supported:
            return
        with redis_errors():
            await self._client.command("VADD", _PROBE, "VALUES", 1, 1, "probe", budget_s=budget_s)
        self._supported = True

    async def inspect(self) -> None:
        """Logs why this Redis is unsuitable for collections, if it is. Never raises."""
        try:
            await self.require()
            memory = await self._client.command("INFO", "memory")
        except Problem as problem:
            log.warning("collections are unavailable: %s", problem.message)
            return
        except Unreachable as error:
            log.warning("cannot inspect the index's Redis: %s", type(error).__name__)
            return
        policy = str(memory.get("maxmemory_policy", "")) if isinstance(memory, dict) else ""
        if policy.startswith("allkeys"):
            log.warning(
                "maxmemory-policy %s permits Redis to evict collections: use volatile-lfu or noeviction", policy
            )

    async def filter(self, field: str, expression: str, budget_s: float | None = None) -> Filter:
        """The filter of an expression. Raises InvalidField for `field` if it does not parse.

        Redis parses it here, on a set for that purpose: an empty shard does not refuse any filter.
        """
        try:
            wanted = translate(expression)
            error = await self._client.command("EVAL", lua.PROBE, 1, _PROBE, wanted.redis, budget_s=budget_s)
        except FilterError as wrong:
            raise InvalidField(field, str(wrong)) from None
        except Unreachable:
            return wanted  # the node of the catalogue is down: the shards will parse it
        if b"FILTER" in error:
            raise InvalidField(field, wanted.refused(error.decode("utf-8", "replace")))
        return wanted

    async def create(
        self, name: str, model: ModelRef, dimensions: int, quantization: Quantization, shards: int | None
    ) -> Collection:
        """Creates an empty collection. AlreadyExists if the name is that of a collection or an alias."""
        with redis_errors():
            await self.require()
            await self._sweep()
            for _ in range(_TRIES):
                uid = secrets.token_hex(8)
                tags = self._tags(uid, shards or (1 if self._client.masters == 1 else self._default_shards()))
                made = Collection(name, uid, model, dimensions, quantization, tags, _M, time.time_ns())
                done = await self._create(made)
                if done == 1:
                    return made
                await _drop(self._client, uid, tags)
                if done == 0:
                    raise AlreadyExists("collection or alias", name)
        raise UpstreamUnavailable("index", "is too slow to create a collection")

    async def _create(self, made: Collection) -> int:
        """Creates the shards, then the name; returns the answer of `lua.CREATE`."""
        await self._client.command("EVAL", lua.BEGIN, 1, _TRASH, made.uid, json.dumps(made.shards), _CREATION_S)
        await _mark(self._client, made.uid, made.shards)
        return int(
            await self._client.command(
                "EVAL", lua.CREATE, 3, _COLLECTIONS, _ALIASES, _TRASH, made.name, made.uid, made.pack()
            )
        )

    def _default_shards(self) -> int:
        return _SHARDS_PER_MASTER * self._client.masters

    def _tags(self, uid: str, shards: int) -> tuple[str, ...]:
        """Hash tags that spread the shards evenly over the current masters."""
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

    async def resolve(self, name: str, budget_s: float | None = None) -> Collection:
        """The current collection of a name or an alias; NotFound if there is none.

        If the catalogue cannot be read within the budget, the one that this process last saw under that name.
        """
        await self.require(budget_s)
        try:
            found = await self._client.command("EVAL", lua.RESOLVE, 2, _COLLECTIONS, _ALIASES, name, budget_s=budget_s)
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
        with redis_errors():
            await self.require()
            collections, aliases = await self._client.command("EVAL", lua.LIST, 2, _COLLECTIONS, _ALIASES)
        pointing: dict[bytes, list[str]] = {}
        for alias, target in zip(aliases[::2], aliases[1::2], strict=True):
            pointing.setdefault(target, []).append(alias.decode())
        pairs = zip(collections[::2], collections[1::2], strict=True)
        return [
            (Collection.unpack(name.decode(), packed), sorted(pointing.get(name, []))) for name, packed in sorted(pairs)
        ]

    async def remove(self, name: str) -> None:
        """Removes a collection with its documents and aliases; NotFound if there is none of that name."""
        with redis_errors():
            await self.require()
            packed = await self._client.command("HGET", _COLLECTIONS, name)
            if packed is None:
                raise NotFound("collection", name)
            collection, operation = Collection.unpack(name, packed), new_operation()
            keys = (_COLLECTIONS, _ALIASES, _TRASH, _ALIASES_VERSION, _answer(operation))
            tags = json.dumps(collection.shards)
            done = await self._client.command(
                "EVAL", lua.REMOVE, len(keys), *keys, name, packed, collection.uid, tags, operation
            )
            if not done:
                raise NotFound("collection", name)
            await self._sweep()

    async def set_alias(self, alias: str, collection: str) -> None:
        """Points an alias at a collection. NotFound, or AlreadyExists if a collection has the name of the alias."""
        done = await self._change_alias(lua.SET_ALIAS, (_COLLECTIONS, _ALIASES), (alias, collection))
        if done == -1:
            raise AlreadyExists("collection", alias)
        if done == 0:
            raise NotFound("collection", collection)

    async def delete_alias(self, alias: str) -> None:
        """Removes an alias; NotFound if there is none."""
        if not await self._change_alias(lua.DELETE_ALIAS, (_ALIASES,), (alias,)):
            raise NotFound("alias", alias)

    async def _change_alias(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> int:
        """Runs a change that depends on the current aliases: a late one finds them changed, and has no effect."""
        with redis_errors():
            await self.require()
            for _ in range(_TRIES):
                seen = await self._client.command("GET", _ALIASES_VERSION) or b""
                operation = new_operation()
                all_keys = (*keys, _ALIASES_VERSION, _answer(operation))
                done = await self._client.command("EVAL", script, len(all_keys), *all_keys, *arguments, operation, seen)
                if done != lua.CHANGED:
                    return int(done)
        raise UpstreamUnavailable("index", "has concurrent changes of its aliases")

    async def _sweep(self) -> None:
        """Removes the keys of removed collections. Keys that cannot be reached are left for the next time."""
        claimed = await self._client.command("EVAL", lua.CLAIM, 2, _TRASH, _COLLECTIONS)
        for uid, entry in zip(claimed[::2], claimed[1::2], strict=True):
            try:
                await _drop(self._client, uid.decode(), json.loads(entry)["tags"])
            except Unreachable as error:
                log.warning("keys of a removed collection are not removed yet: %s", type(error).__name__)


async def restore(client: RedisClient, collection: Collection, tags: Sequence[str]) -> None:
    """Creates the markers of shards that lost theirs. NotFound if the collection has been removed."""
    with redis_errors():
        await _require_current(client, collection)
        await _mark(client, collection.uid, tags)
        try:
            await _require_current(client, collection)
        except NotFound:  # removed in between: the new markers must not stay
            await _drop(client, collection.uid, collection.shards)
            raise


async def _require_current(client: RedisClient, collection: Collection) -> None:
    packed = await client.command("HGET", _COLLECTIONS, collection.name)
    if packed is None or Collection.unpack(collection.name, packed).uid != collection.uid:
        raise NotFound("collection", collection.name)


async def _mark(client: RedisClient, uid: str, tags: Sequence[str]) -> None:
    keys = [shard_keys(tag) for tag in tags]
    await _all(client, [("EVAL", lua.MARK, len(shard), *shard, uid) for shard in keys])


async def _drop(client: RedisClient, uid: str, tags: Sequence[str]) -> None:
    await _all(client, [("UNLINK", *shard_keys(tag)) for tag in tags])
    await client.command("HDEL", _TRASH, uid)


async def _all(client: RedisClient, commands: Sequence[Command]) -> None:
    for reply in await client.commands(commands):
        if isinstance(reply, Exception):
            raise reply


def _answer(operation: bytes) -> str:
    """The key of the answer to a change of the catalogue, kept for a minute."""
    return f"winnow:i:{{catalogue}}:answer:{operation.hex()}"
