"""Request checks: all wrong fields are gathered and reported at once.

Field paths are the proto's ("texts[3]", "options.dimensions").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from services.runtime.errors import InvalidField, InvalidFields, Problem


@cache
def _numbers(kind: EnumTypeWrapper) -> frozenset[int]:
    return frozenset(kind.DESCRIPTOR.values_by_number)  # protobuf builds the mapping at each access


def oversized(field: str, text: str, limit: int) -> Problem | None:
    """The problem with a text of more than `limit` bytes of UTF-8; None if it fits."""
    # A code point is 1 to 4 bytes: most texts are judged without encoding them.
    if len(text) * 4 <= limit or (len(text) <= limit and (text.isascii() or len(text.encode()) <= limit)):
        return None
    return InvalidField(field, f"has more than {limit} bytes of UTF-8; send it in parts, or less of it")


class Check:
    """Gathers violations; `done` raises them together."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._violations: list[tuple[str, str]] = []

    def wrong(self, field: str, description: str) -> None:
        """Notes one violation."""
        self._violations.append((self._prefix + field, description))

    def count(self, field: str, items: Sequence[Any], low: int, high: int) -> None:
        """`low` to `high` items."""
        if not low <= len(items) <= high:
            self.wrong(field, f"has {len(items)} items; {low} to {high} are allowed in one request")

    def within(self, field: str, value: float, low: float, high: float) -> None:
        """`low` to `high`, both included. NaN is outside."""
        if not low <= value <= high:
            self.wrong(field, f"is {value}; {low} to {high} is allowed")

    def enum(self, field: str, value: int, kind: EnumTypeWrapper) -> bool:
        """A value that the contract defines, and whether it is one. Proto3 enums are open: any number can arrive."""
        known = value in _numbers(kind)
        if not known:
            self.wrong(field, f"is {value}, not a valid {kind.DESCRIPTOR.name}; allowed: {', '.join(kind.keys())}")
        return known

    def filled(self, field: str, text: str) -> None:
        """More than white space."""
        if not text.strip():
            self.wrong(field, "is empty")

    def size(self, field: str, text: str, limit: int) -> None:
        """At most `limit` bytes of UTF-8."""
        problem = oversized(field, text, limit)
        if isinstance(problem, InvalidFields):
            self.wrong(field, problem.violations[0][1])

    def done(self) -> None:
        """Raises InvalidFields if anything was wrong."""
        if self._violations:
            raise InvalidFields(self._violations)
