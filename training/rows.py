"""The rows of a corpus, and their files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """A query and its relevant document.

    `title` is the name of the thing (a package, a function, a word), `query` its description in one line, and `doc` the
    long text, which does not repeat `query`. `group` (a source package, a module) must not be divided between training
    and test. `kind` is the corpus.
    """

    kind: str
    group: str
    title: str
    query: str
    doc: str


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Reads a file of `write_rows`."""
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]


def write_pairs(path: Path, rows: Iterable[Row]) -> None:
    """Writes the `{"query", "doc"}` lines that `python -m bench quality` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps({"query": row.query, "doc": row.doc}, ensure_ascii=False) + "\n")


def read_pairs(path: Path) -> tuple[list[str], list[str]]:
    """Reads queries and documents, in the same order."""
    with path.open(encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    return [p["query"] for p in pairs], [p["doc"] for p in pairs]
