"""Reads a Hugging Face checkpoint: a folder or a hub id, one safetensors file or many."""

import hashlib
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from services.engine.checkpoint import folder as folders
from services.engine.checkpoint import hub, tensors
from services.engine.errors import CheckpointError
from services.engine.models.qwen3.config import ModelConfig

_CHUNK = 1 << 24


class Checkpoint:
    """An opened checkpoint. Tensors go by their bare names: `layers.0.mlp.up_proj.weight`, never `model.layers…`."""

    def __init__(self, folder: Path, name: str, revision: str) -> None:
        folders.refuse_foreign(folder)
        self.folder = folder
        self.name = name
        self.revision = revision
        self.raw_config = folders.read_json(folder / "config.json")
        self.config = ModelConfig.parse(self.raw_config)
        self.tokenizer_file = folder / "tokenizer.json"
        folders.refuse_placeholder(self.tokenizer_file)
        self._entries = tensors.index(folder, self.config.num_hidden_layers)

    @classmethod
    def open(cls, model: str, revision: str | None = None) -> "Checkpoint":
        """`model`: a folder, else a hub id that is found in the local cache or downloaded."""
        folder = Path(model).expanduser().absolute()
        with folders.readable(folder):
            is_folder, is_file = folder.is_dir(), folder.is_file()
        if is_folder:
            return cls(folder, folder.resolve().name, revision or "")
        if is_file:
            raise CheckpointError(f"{model}: is a file; give the folder that holds it")
        if not hub.is_hub_id(model):
            raise CheckpointError(f"{model}: no such folder, and not a hub id like Qwen/Qwen3-Embedding-0.6B")
        folder = hub.snapshot(model, revision)
        return cls(folder, model, folder.name)  # the snapshot's folder is named by its commit

    @property
    def size(self) -> int:
        """Bytes of its weights on disk."""
        return sum(file.stat().st_size for file in self._files())

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor as stored. Raises CheckpointError by name if it is missing, misshapen or all zero."""
        if name not in self._entries:
            raise CheckpointError(f"{self.name}: tensor {name} is missing")
        stored = self._entries[name]
        with tensors.opened(stored.file) as file:
            tensor: torch.Tensor = file.get_tensor(stored.raw)
        if tensor.shape != shape:
            raise CheckpointError(f"{self.name}: tensor {name} is {list(tensor.shape)}, config.json says {list(shape)}")
        if not tensor.any():
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
                    parts += zip(map(tensors.bare, header), (job.result() for job in jobs), strict=True)
        return hashlib.sha256(json.dumps(sorted(parts)).encode()).hexdigest()

    @property
    def has_prefix(self) -> bool:
        """Whether its tensors are named as a Qwen3ForCausalLM's (`model.norm.weight`), not as a Qwen3Model's."""
        return any(stored.raw.startswith("model.") for stored in self._entries.values())

    def _files(self) -> set[Path]:
        return {stored.file for stored in self._entries.values()}


def _hash(data: mmap.mmap, start: int, entry: dict[str, Any]) -> str:
    begin, end = entry["data_offsets"]
    digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
    with memoryview(data) as view:
        for at in range(start + begin, start + end, _CHUNK):
            digest.update(view[at : min(at + _CHUNK, start + end)])
    return digest.hexdigest()
