"""Reads documents from JSON Lines, one line at a time, and refuses what it would have to guess or leave out."""

import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from winnow.retrieval.v1 import retrieval_pb2 as pb
from winnow_cli.errors import CommandError

KEYS = ("id", "text", "metadata")
_MAX_LINE_BYTES = 32 << 20  # above every text that a gateway takes by default, and all that is held at a time


def read_documents(path: str) -> Iterator[pb.Document]:
    """Yield the documents of a file, or of standard input for "-".

    A line is {"id": string or number, "text": string, "metadata": object, may be absent} in UTF-8. A byte order mark
    and blank lines are passed over. CommandError names the line that is anything else; OSError if the file cannot be
    read.
    """
    with _standard_input() if path == "-" else Path(path).open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            try:
                document = _document(line, first=number == 1)
            except (ValueError, RecursionError) as error:
                name = "standard input" if path == "-" else path
                raise CommandError(f"{name}, line {number}: {_reason(error)}") from None
            if document is not None:
                yield document


def _standard_input() -> BinaryIO:
    # A buffer of our own: a thread that waits in sys.stdin's would keep the interpreter from ending after Ctrl-C.
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except io.UnsupportedOperation:
        return sys.stdin.buffer


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES + 1):
        yield line


def _document(line: bytes, first: bool) -> pb.Document | None:
    """Return the document of a line, None if it is blank; ValueError says what is wrong with it."""
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"is longer than {_MAX_LINE_BYTES >> 20} MiB")
    text = line.decode("utf-8-sig" if first else "utf-8")
    if not text.strip():
        return None
    row = json.loads(text, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite)
    if not isinstance(row, dict):
        raise ValueError("wants an object with the keys id and text, and metadata if there are any")
    if unknown := [key for key in row if key not in KEYS]:
        raise ValueError(f"unknown key {', '.join(map(json.dumps, unknown))}; known are {', '.join(KEYS)}")
    if missing := [key for key in ("id", "text") if key not in row]:
        raise ValueError(f"{' and '.join(missing)} missing")
    if isinstance(row["id"], bool) or not isinstance(row["id"], str | int | float):
        raise ValueError(f"id must be a string or a number, not {_kind(row['id'])}")
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string, not {_kind(row['text'])}")
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be an object, not {_kind(metadata)}")
    return pb.Document(
        id=str(row["id"]),
        text=row["text"],
        metadata_json=json.dumps(metadata, ensure_ascii=False),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {json.dumps(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number of JSON that can be kept")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", list: "a list", dict: "an object", str: "a string"}.get(type(value), "a number")


def _reason(error: Exception) -> str:
    """Return what is wrong with a line, in words."""
    match error:
        case RecursionError():
            return "is nested too deeply"
        case json.JSONDecodeError():
            return f"is not JSON: {error.msg} (column {error.colno})"
        case UnicodeDecodeError():
            return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        case UnicodeEncodeError():
            return "holds half of a surrogate pair, which is no Unicode text"
        case _:
            return str(error)
