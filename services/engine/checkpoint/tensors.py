"""The tensors of a checkpoint: each stored once, each of a kind that its family uses."""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from services.engine.checkpoint.weight_files import opened, weight_files
from services.engine.errors import CheckpointError

_NUMBERS = frozenset({"F64", "F32", "F16", "BF16"})
_CHUNK = 1 << 24
_ORIGINAL = "give the checkpoint as it was before, in bfloat16, float16 or float32"
# Why a tensor that no family uses changes the results, by its name.
_FOREIGN = (
    (r"lora_|base_model\.|adapter", "belongs to an adapter; merge it into its base and give the merged model"),
    (
        r"scale|qweight|qzeros|g_idx|absmax|quant|SCB|zero_point|_packed|weight_shape",
        f"belongs to quantised weights; {_ORIGINAL}",
    ),
)


class Usage(NamedTuple):
    """What a family makes of a checkpoint's tensors, by their bare names."""

    derived: re.Pattern[str]
    """Names of tensors that follow from config.json: they are skipped."""
    unused: Callable[[str], str | None]
    """Why a tensor is not used, so that the checkpoint is refused; None for one that is used."""
    prefixes: tuple[str, ...] = ("model.",)
    """What may stand before a bare name, in this order: `model.layers.0…` and `layers.0…` are one tensor."""
    spellings: Mapping[str, str] = MappingProxyType({})
    """Parts of names as another implementation of the same model spells them, and as they are spelt here."""

    def bare(self, raw: str) -> str:
        """The name as it is spelt here, without what may stand before it."""
        for prefix in self.prefixes:
            raw = raw.removeprefix(prefix)
        for other, ours in self.spellings.items():
            raw = raw.replace(other, ours)
        return raw


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor is stored: `raw` is its name in `file`."""

    file: Path
    raw: str


class Tensors:
    """The tensors of a folder by their bare names: `layers.0.mlp.up_proj.weight`, never `model.layers…`."""

    def __init__(self, name: str, folder: Path, usage: Usage) -> None:
        """`name`: of the checkpoint, for messages.

        Raises CheckpointError for a tensor that is stored twice, quantised, or that the family does not use.
        """
        self.name = name
        self._usage = usage
        self._stored = _index(folder, usage)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self._files())

    @property
    def has_prefix(self) -> bool:
        """Whether they are named as those of a model with a head (`model.norm.weight`), not of one without."""
        return any(stored.raw != name for name, stored in self._stored.items())

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __call__(self, name: str, shape: tuple[int, ...], *, may_be_zero: bool = False) -> torch.Tensor:
        """The tensor as stored. Raises CheckpointError by name if it is missing, misshapen or, if it may not be, all
        zero."""
        if name not in self._stored:
            raise CheckpointError(f"{self.name}: tensor {name} is missing")
        stored = self._stored[name]
        with opened(stored.file) as file:
            tensor: torch.Tensor = file.get_tensor(stored.raw)
        if tensor.shape != shape:
            raise CheckpointError(f"{self.name}: tensor {name} is {list(tensor.shape)}, config.json says {list(shape)}")
        if not may_be_zero and not tensor.any():
            raise CheckpointError(f"{self.name}: tensor {name} is all zero")
        return tensor

    def digest(self) -> str:
        """SHA-256 over every tensor's name, dtype, shape and bytes, the same however they are spread over files.

        Tensors are hashed side by side (hashlib drops the GIL), some 1.5 GB/s per core with SHA instructions.
        """
        parts: list[tuple[str, str]] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for file in sorted(self._files()):
                with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    start = 8 + int.from_bytes(data[:8], "little")
                    header: dict[str, Any] = json.loads(data[8:start])
                    header.pop("__metadata__", None)
                    jobs = [pool.submit(_hash, data, start, entry) for entry in header.values()]
                    parts += zip(map(self._usage.bare, header), (job.result() for job in jobs), strict=True)
        return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()

    def _files(self) -> set[Path]:
        return {stored.file for stored in self._stored.values()}


def _index(folder: Path, usage: Usage) -> dict[str, _Stored]:
    name, found = folder.name, dict[str, _Stored]()
    for file in weight_files(folder):
        with opened(file) as tensors:
            for raw in tensors.keys():  # noqa: SIM118 - not a dict
                kind, bare = tensors.get_slice(raw).get_dtype(), usage.bare(raw)
                if usage.derived.fullmatch(bare):
                    continue
                if bare in found:
                    other = found[bare].file.name
                    both = f"{other} and {file.name}" if other != file.name else f"{file.name}, under two names"
                    raise CheckpointError(
                        f"{name}: tensor {raw} is stored twice, in {both}; remove the one that is stale"
                    )
                if reason := usage.unused(bare):
                    raise CheckpointError(f"{name}: {file.name}: tensor {raw} {_foreign(bare) or reason}")
                if kind not in _NUMBERS:
                    raise CheckpointError(
                        f"{name}: tensor {raw} is {kind}; quantised checkpoints are not served: {_ORIGINAL}"
                    )
                found[bare] = _Stored(file, raw)
    return found


def _foreign(name: str) -> str | None:
    return next((reason for pattern, reason in _FOREIGN if re.search(pattern, name)), None)


def _hash(data: mmap.mmap, start: int, entry: dict[str, Any]) -> str:
    begin, end = entry["data_offsets"]
    digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
    with memoryview(data) as view:
        for at in range(start + begin, start + end, _CHUNK):
            digest.update(view[at : min(at + _CHUNK, start + end)])
    return digest.hexdigest()
