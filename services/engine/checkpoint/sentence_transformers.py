"""The files beside the weights that say how sentence-transformers uses a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.engine.checkpoint.folder import read_json, read_json_value
from services.engine.errors import CheckpointError

_LIBRARY = "sentence_transformers."
_POOLING_MODES = {  # as sentence-transformers named them before version 5.4
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Described:
    """What a checkpoint's folder, or the folder above it, says of its use.

    `settings`: config_sentence_transformers.json. `modules`: kind and folder of each module in order; none if the
    folder says nothing of them.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for files that cannot be read, and for a module of the model's own code."""
        home = _home(folder)
        self.settings = optional_json(home / "config_sentence_transformers.json")
        self.modules = _modules(home)

    @property
    def kinds(self) -> list[str]:
        """The modules' kinds: `Transformer`, `Pooling`, …"""
        return [kind for kind, _ in self.modules]

    @property
    def prompts(self) -> dict[object, str]:
        """The prompts by name."""
        prompts = self.settings.get("prompts") or {}
        return {name: str(prompt or "") for name, prompt in prompts.items()} if isinstance(prompts, Mapping) else {}


def longest_text(folder: Path) -> int | None:
    """The tokens at which sentence-transformers cuts a text for this model, if it names a number."""
    named = [
        optional_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        optional_json(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    # transformers writes 1e30 for "no limit".
    numbers = [value for value in named if isinstance(value, int | float) and 1 < value < 1e9]
    return int(min(numbers)) if numbers else None


def pooling_modes(file: Path) -> list[str]:
    """How a Pooling module's config.json makes one vector of many."""
    pooling = read_json(file)
    mode = pooling.get("pooling_mode")
    if mode is None:
        mode = [mode for key, mode in _POOLING_MODES.items() if pooling.get(key)] or ["mean"]
    return [mode] if isinstance(mode, str) else list(map(str, mode))


def optional_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    return read_json(file) if file.is_file() else {}


def _home(folder: Path) -> Path:
    """Where sentence-transformers' files lie: here, or one up if this is the first of that folder's modules."""
    above = folder.parent / "modules.json"
    if (folder / "modules.json").is_file() or not above.is_file():
        return folder
    return folder.parent if folder.name in (path.name for _, path in _listed(above)) else folder


def _modules(home: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each sentence-transformers module, in order; none if the folder says nothing of them."""
    file = home / "modules.json"
    if file.is_file():
        for kind, _ in _listed(file):
            if not kind.startswith(_LIBRARY):
                raise CheckpointError(f"{home.name}: modules.json: {kind} is code of its own, which is never run")
        return [(kind.rpartition(".")[2], path) for kind, path in _listed(file)]
    # Modules whose list was left behind: their folders are called 1_Pooling, 2_Dense and so on.
    loose = [path.parent for path in sorted(home.glob("[0-9]_*/config.json"))]
    return [("Transformer", home), *((path.name.split("_")[1], path) for path in loose)] if loose else []


def _listed(file: Path) -> list[tuple[str, Path]]:
    """Type and folder of each module in modules.json."""
    try:
        return [(str(module["type"]), file.parent / str(module["path"])) for module in read_json_value(file)]
    except (TypeError, KeyError):
        raise CheckpointError(f"{file.parent.name}: modules.json is not a list of modules") from None
