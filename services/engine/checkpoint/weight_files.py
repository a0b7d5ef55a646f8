"""The safetensors files of a folder: whole, readable, and in agreement with their index."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from services.engine.checkpoint.folder import read_json, readable, refuse_placeholder
from services.engine.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_LONGEST_HEADER = 100_000_000  # by safetensors' own format; a longer one is no header


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order. Raises CheckpointError if they and their index disagree."""
    files = sorted(folder.glob("*.safetensors"))
    if missing := missing_weights(folder):
        raise CheckpointError(f"{folder.name}: {missing}")
    if (folder / _INDEX).is_file():
        _refuse_stale(folder, files)
    return files


def missing_weights(folder: Path) -> str | None:
    """What is missing of the safetensors files, if so: a file that the index lists, a part of several, or all."""
    if (folder / _INDEX).is_file():
        wanted, why = set(_listed(folder).values()), f", though {_INDEX} lists it"
    else:
        files, why = [file.name for file in folder.glob("*.safetensors")], ""
        if not files:
            return "no *.safetensors file; weights in other formats are not read"
        wanted = set(files)  # a link may point nowhere
        for stem, number, count in (part.groups() for part in map(_PART.fullmatch, files) if part):
            wanted |= {f"{stem}-{i:0{len(number)}}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    lacking = sorted(file for file in wanted if not (folder / file).is_file())
    return f"{lacking[0]} is missing{why}; download it again" if lacking else None


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An open safetensors file. Raises CheckpointError by name."""
    refuse_placeholder(file)
    try:
        with readable(file), safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        size = file.stat().st_size
        cause = f"it ends after {size} bytes, too early: download it again" if _is_cut(file, error) else str(error)
        raise CheckpointError(f"{file.parent.name}: {file.name} cannot be read ({cause})") from None


def _is_cut(file: Path, error: SafetensorError) -> bool:
    """Whether the file ends before its header does (8 bytes of length, then JSON), or before its tensors do."""
    with open(file, "rb") as data:
        start = data.read(8)
    header = int.from_bytes(start, "little")
    return len(start) < 8 or file.stat().st_size < 8 + header < _LONGEST_HEADER or "incomplete" in str(error).lower()


def _listed(folder: Path) -> dict[str, str]:
    """The index: the file of every tensor."""
    listed = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(f"{folder.name}: {_INDEX} has no weight_map from tensors to files")
    return listed


def _refuse_stale(folder: Path, files: list[Path]) -> None:
    """The index must name exactly the tensors of exactly the files that are there."""
    listed = _listed(folder)
    for file in files:
        said = {raw for raw, where in listed.items() if where == file.name}
        if not said:
            raise CheckpointError(
                f"{folder.name}: {file.name} is not listed in {_INDEX}; one of the two is stale: remove that one"
            )
        with opened(file) as tensors:
            held = set(tensors.keys())
        if held != said:
            raise CheckpointError(
                f"{folder.name}: {_INDEX} and {file.name} disagree about tensor {min(held ^ said)};"
                " one of the two is stale: download both again"
            )
