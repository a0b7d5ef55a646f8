"""Both halves of the index."""

from dataclasses import dataclass

from gateway.index.catalogue import Catalogue
from gateway.index.store import Store


@dataclass(frozen=True, slots=True)
class Index:
    """Which collections there are, and what is in them."""

    catalogue: Catalogue
    store: Store
