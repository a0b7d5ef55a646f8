"""The catalogue as the current caller may see and change it."""

from gateway.callers.access import Access
from gateway.index.catalogue import Catalogue
from gateway.index.collection import Collection, ModelRef, Quantization
from gateway.redis.client import RedisClient


class AuthorizedCatalogue(Catalogue):
    """Every method that is given a name raises PermissionDenied, before it looks, if the caller may not use it."""

    def __init__(self, client: RedisClient, access: Access) -> None:
        super().__init__(client)
        self._access = access

    async def create(
        self, name: str, model: ModelRef, dimensions: int, quantization: Quantization, shards: int | None
    ) -> Collection:
        """Creates an empty collection."""
        self._access.require_collection(name)
        return await super().create(name, model, dimensions, quantization, shards)

    async def resolve(self, name: str, budget_s: float | None = None) -> Collection:
        """The current collection of a name or an alias, both of which the caller must be allowed."""
        self._access.require_collection(name)
        collection = await super().resolve(name, budget_s)
        self._access.require_collection(name, collection.name)
        return collection

    async def listed(self) -> list[tuple[Collection, list[str]]]:
        """The collections and aliases that the caller may use."""
        sees = self._access.sees
        return [
            (collection, [alias for alias in aliases if sees(alias)])
            for collection, aliases in await super().listed()
            if sees(collection.name)
        ]

    async def remove(self, name: str) -> None:
        """Removes a collection with its documents and aliases."""
        self._access.require_collection(name)
        await super().remove(name)

    async def set_alias(self, alias: str, collection: str) -> None:
        """Points an alias at a collection."""
        self._access.require_collection(alias)
        self._access.require_collection(collection)
        await super().set_alias(alias, collection)

    async def delete_alias(self, alias: str) -> None:
        """Removes an alias."""
        self._access.require_collection(alias)
        await super().delete_alias(alias)
