"""What sentence-transformers makes of a model's final hidden states: pooling, dense layers, unit length."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from services.engine.checkpoint.folder import read_json
from services.engine.checkpoint.sentence_transformers import Described, optional_json, pooling_modes
from services.engine.checkpoint.weight_files import opened, weight_files
from services.engine.errors import CheckpointError
from services.engine.layers.pooling import Pooling
from services.engine.models.base import Head, unit_vectors

_MODES = {"cls": Pooling.FIRST, "lasttoken": Pooling.LAST, "mean": Pooling.MEAN}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": torch.tanh,
    "torch.nn.modules.activation.ReLU": torch.relu,
    "torch.nn.modules.activation.Sigmoid": torch.sigmoid,
    "torch.nn.modules.activation.GELU": torch.nn.functional.gelu,
}
_NO_EFFECT = "Dropout"


@dataclass(frozen=True, slots=True)
class Dense:
    """`activation(x · weightᵀ + bias)`; weight: `[out, in]`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str

    @classmethod
    def read(cls, folder: Path, width: int) -> Self:
        """The module in `folder`, for vectors of `width`. Raises CheckpointError."""
        config = read_json(folder / "config.json")
        at = f"{folder.parent.name}: {folder.name}/config.json"
        activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
        if activation not in _ACTIVATIONS:
            raise CheckpointError(f"{at}: activation_function = {activation!r} is not served")
        _refuse_others(at, config, served={"use_residual": False, **_ON_VECTORS})
        if config.get("in_features") != width:
            raise CheckpointError(f"{at}: in_features is {config.get('in_features')!r}, but vectors have {width} there")
        names = ["linear.weight"] + (["linear.bias"] if config.get("bias", True) else [])
        found = _tensors(folder)
        if set(found) != set(names):
            raise CheckpointError(f"{at}: its tensors are {', '.join(sorted(found))}, not {' and '.join(names)}")
        shape = [config.get("out_features"), width]
        weight, bias = found["linear.weight"], found.get("linear.bias")
        if list(weight.shape) != shape or (bias is not None and list(bias.shape) != shape[:1]):
            raise CheckpointError(f"{at}: linear.weight is {list(weight.shape)}, config.json says {shape}")
        return cls(weight, bias, activation)

    @property
    def name(self) -> str:
        """All that decides its results."""
        digest = hashlib.sha256()
        for tensor in (self.weight, self.bias):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
        return f"{list(self.weight.shape)} {self.activation} {digest.hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Modules:
    """`pooling` is None if the folder does not say."""

    pooling: Pooling | None
    dense: tuple[Dense, ...]

    @classmethod
    def read(cls, name: str, described: Described, hidden: int) -> Self:
        """What the folder of the checkpoint `name` says, for states of width `hidden`. Raises CheckpointError for what
        is not served."""
        settings = described.settings
        if (kind := settings.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
            raise CheckpointError(
                f"{name}: config_sentence_transformers.json: model_type is {kind!r}, not SentenceTransformer: this is"
                " no embedding model"
            )
        modules = [(kind, path) for kind, path in described.modules if kind != _NO_EFFECT]
        kinds = [kind for kind, _ in modules]
        dense = tuple(path for kind, path in modules if kind == "Dense")
        normalises = "Normalize" in kinds
        if modules and kinds != ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalises]:
            raise CheckpointError(
                f"{name}: modules.json: {', '.join(kinds)} is not served, only Transformer, Pooling, Dense, Normalize,"
                " in this order"
            )
        similarity = settings.get("similarity_fn_name") or "cosine"
        if similarity != "cosine" and not (similarity == "dot" and (normalises or not modules)):
            raise CheckpointError(
                f"{name}: config_sentence_transformers.json: similarity_fn_name is {similarity!r}, but vectors are"
                " served at unit length and compared by cosine"
            )
        if not modules:
            return cls(None, ())
        layers, width = list[Dense](), hidden
        for path in dense:
            layers.append(Dense.read(path, width))
            width = len(layers[-1].weight)
        if normalises:
            config = optional_json(modules[-1][1] / "config.json")
            _refuse_others(f"{name}: {modules[-1][1].name}/config.json", config, served=_ON_VECTORS)
        return cls(_pooling(name, modules[1][1], hidden), tuple(layers))

    def head(self, device: torch.device) -> tuple[str, Head]:
        """Unit vectors of pooled states, in fp32; and what decides them, for the fingerprint."""
        layers = [(_on(layer.weight, device), _on(layer.bias, device), layer.activation) for layer in self.dense]

        def head(hidden: torch.Tensor) -> torch.Tensor:
            for weight, bias, activation in layers:
                hidden = _ACTIVATIONS[activation](torch.nn.functional.linear(hidden, weight, bias))
            return unit_vectors(hidden)

        return " → ".join(["embedding", *(layer.name for layer in self.dense)]), head


# A module of ours reads the pooled vector and writes it.
_ON_VECTORS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


def _on(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    return tensor.to(device, torch.float32) if tensor is not None else None  # type: ignore[return-value]


def _refuse_others(at: str, config: Mapping[str, Any], *, served: Mapping[str, object]) -> None:
    for key, value in served.items():
        if (other := config.get(key)) not in (None, value):
            raise CheckpointError(f"{at}: {key} = {other!r} is not served, only {value!r}")


def _pooling(name: str, folder: Path, hidden: int) -> Pooling:
    at, config = f"{name}: {folder.name}/config.json", read_json(folder / "config.json")
    modes = pooling_modes(folder / "config.json")
    if len(modes) != 1 or modes[0] not in _MODES:
        raise CheckpointError(
            f"{at}: pooling by {' and '.join(modes)} is not served, only by one of {', '.join(_MODES)}"
        )
    if config.get("include_prompt") is False:
        raise CheckpointError(f"{at}: include_prompt = false is not served: prompts count in the pooling")
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden))
    if width != hidden:
        raise CheckpointError(f"{at}: its vectors have {width!r} values, config.json says {hidden}")
    return _MODES[modes[0]]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt") for path in folder.glob(pattern))
    if pickled and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder.parent.name}: {folder.name}/{pickled[0]}: pickled weights are not read; save the model as"
            " safetensors (save_pretrained of sentence-transformers does)"
        )
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with opened(file) as tensors:
            found |= {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118 - not a dict
    return found
