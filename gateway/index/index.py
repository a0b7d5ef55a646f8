"""The index: its catalogue and its store."""

from dataclasses import dataclass

from gateway.index.catalogue import Catalogue
from gateway.index.store import Store


@dataclass(frozen=True, slots=True)
class Index:
    """The collections, and their documents."""

    catalogue: Catalogue
    store: Store
