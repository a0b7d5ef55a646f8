"""A Hugging Face checkpoint: a folder or a hub id."""

from pathlib import Path

from services.engine.checkpoint import folder as folders
from services.engine.checkpoint import hub
from services.engine.errors import CheckpointError


class Checkpoint:
    """A folder that may hold a checkpoint. What its files mean is for the family of its `model_type` to say.

    `name`: the hub id, or the folder's own name. `revision`: the commit, or "" for a folder.
    """

    def __init__(self, folder: Path, name: str, revision: str) -> None:
        folders.refuse_foreign(folder)
        self.folder = folder
        self.name = name
        self.revision = revision
        self.raw_config = folders.read_json(folder / "config.json")
        self.tokenizer_file = folder / "tokenizer.json"

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
