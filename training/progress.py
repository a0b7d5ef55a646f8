"""A progress line for long loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterates with a progress bar on the terminal."""
    yield from track(items, description=what)
