"""sentence-transformers with models in int8, by ONNX Runtime and by OpenVINO.

Runs in an environment that has them. The converted model is kept in `.cache/bench`.
"""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

from bench.subjects import Computed, Vectors
from bench.subjects.sentence_transformers import encode

_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "bench"


class _Int8Embedder:
    format = "int8"

    def __init__(self, model: Any) -> None:
        self._model, self.computed = model, Computed()

    def embed(self, texts: Sequence[str], queries: bool, batch_size: int) -> Vectors:
        """See `Model`."""
        return encode(self._model, texts, queries, batch_size)

    def close(self) -> None:
        """See `Model`."""


class OnnxEmbedder(_Int8Embedder):
    """Weights in int8, activations quantised as they come."""

    def __init__(self, folder: Path) -> None:
        kept = _kept(folder, "onnx")
        file = f"model_qint8_{_onnx_target()}.onnx"
        if not (kept / "onnx" / file).is_file():
            plain = _load(folder, "onnx", export=True)
            plain.save_pretrained(str(kept))
            export_dynamic_quantized_onnx_model(plain, _onnx_target(), str(kept))
        model = _load(kept, "onnx", file_name=f"onnx/{file}", export=False)
        _give_positions(model[0].auto_model)
        super().__init__(model)


class OpenVinoEmbedder(_Int8Embedder):
    """Weights in int8; OpenVINO quantises activations as they come where that is faster."""

    def __init__(self, folder: Path) -> None:
        kept = _kept(folder, "openvino")
        if not (kept / "openvino" / "openvino_model.xml").is_file():
            _load(folder, "openvino", export=True, load_in_8bit=True).save_pretrained(str(kept))
        super().__init__(_load(kept, "openvino", export=False))


def _kept(folder: Path, backend: str) -> Path:
    """Where the model of these very weights is kept."""
    written = [file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors"))]
    digest = hashlib.sha256(f"{folder} {written}".encode()).hexdigest()[:8]
    return _CACHE / f"{folder.name}-{backend}-{digest}"


def _load(folder: Path, backend: str, **options: object) -> Any:
    return SentenceTransformer(str(folder), backend=backend, model_kwargs=options)  # type: ignore[arg-type]


def _give_positions(model: Any) -> None:
    """The converted model asks for the positions, which sentence-transformers does not give."""
    forward = model.forward

    def with_positions(*, attention_mask: Any, **inputs: Any) -> Any:
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        return forward(attention_mask=attention_mask, position_ids=positions, **inputs)

    model.forward = with_positions


def _onnx_target() -> str:
    """The name of the instructions to quantise for."""
    if platform.machine() in ("aarch64", "arm64"):
        return "arm64"
    return "avx512_vnni" if "avx512_vnni" in Path("/proc/cpuinfo").read_text() else "avx2"
