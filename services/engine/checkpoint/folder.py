"""A model's folder: which files it holds, and the words for one that holds something else than a checkpoint."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.engine.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"
# Formats that are not read, and what to do instead.
_FOREIGN = {
    "*.gguf": "GGUF is not served; give the folder of the original safetensors checkpoint",
    "*.bin": "pickled weights are not read; save the model as safetensors (save_pretrained does)",
    "*.pt": "pickled weights are not read; save the model as safetensors (save_pretrained does)",
    "*.pth": "pickled weights are not read; save the model as safetensors (save_pretrained does)",
    "*.onnx": "ONNX is not served; give the folder of the original safetensors checkpoint",
}


def refuse_foreign(folder: Path) -> None:
    """Raises CheckpointError for a folder that is no whole checkpoint, and says what it is instead."""
    name = folder.name
    with readable(folder):
        files = sorted(path.name for path in folder.iterdir())
    adapters = [file for file in files if file in ("adapter_config.json", "adapter_model.safetensors")]
    if adapters:
        raise CheckpointError(
            f"{name}: {adapters[0]} belongs to an adapter (LoRA or its kin), which would be ignored; merge it into its"
            " base (merge_and_unload of peft) and give the merged model's folder"
        )
    if not any(folder.glob("*.safetensors*")):
        for pattern, advice in _FOREIGN.items():
            if found := sorted(folder.glob(pattern)):
                raise CheckpointError(f"{name}: {found[0].name}: {advice}")
    if "config.json" not in files and (inner := [str(path.relative_to(folder)) for path in _inside(folder)]):
        raise CheckpointError(f"{name}: config.json is missing, but {', '.join(inner)} has one: give that folder")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError for a file that is missing, unreadable or anything else."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.parent.name}: {path.name} holds a {type(value).__name__}, not a JSON object")
    return value


def read_json_value(path: Path) -> Any:
    """As `read_json`, of any JSON type."""
    refuse_placeholder(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.parent.name}: {path.name} is not JSON") from None


def refuse_placeholder(path: Path) -> None:
    """Raises CheckpointError for a file that is missing, unreadable, empty or a pointer of Git LFS."""
    with readable(path):
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(_LFS_POINTER))
    if not size:
        raise CheckpointError(f"{path.parent.name}: {path.name} is empty; download it again")
    if start == _LFS_POINTER:
        raise CheckpointError(
            f"{path.parent.name}: {path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` there"
        )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the system's refusals into CheckpointError by name."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent.name}: {path.name} is missing") from None
    except PermissionError:
        raise CheckpointError(
            f"{path.parent.name}: {path.name} may not be read by this user; change its mode"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path.parent.name}: {path.name} cannot be read ({error.strerror})") from None


def _inside(folder: Path) -> list[Path]:
    """Folders of checkpoints just below, or where the hub's cache keeps them."""
    found = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    return sorted(path.parent for path in found if any(path.parent.glob("*.safetensors")))
