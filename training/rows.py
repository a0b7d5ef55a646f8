"""The row every corpus is made of, and how rows are kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One pair that belongs together.

    ``title`` names the thing (a package, a function, a word), ``query`` says in one line what it is, and ``doc``
    is the long text, which does not repeat ``query``. ``group`` is what a split must not cut through (a source
    package, a module), ``kind`` the corpus it came from.
    """

    kind: str
    group: str
    title: str
    query: str
    doc: str


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]


def write_pairs(path: Path, rows: Iterable[Row]) -> None:
    """Write the ``{"query", "doc"}`` lines that ``python -m bench quality`` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps({"query": row.query, "doc": row.doc}, ensure_ascii=False) + "\n")


def read_pairs(path: Path) -> tuple[list[str], list[str]]:
    """Read queries and documents, index-aligned."""
    with path.open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    return [p["query"] for p in pairs], [p["doc"] for p in pairs]
