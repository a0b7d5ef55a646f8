"""Settings of a worker; `services.embed` and `services.rerank` add their prefix and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.engine.types import EngineSettings
from services.runtime.settings import OptionalText, ProcessSettings
from winnow.common.v1 import common_pb2

MODELS = Path(__file__).resolve().parents[2] / "models"


class WorkerSettings(ProcessSettings):
    """How a worker loads its model, and the limits of one request."""

    passed_names = True  # a gateway's

    model: str = Field(description="model: a folder in Hugging Face layout, or a hub id", min_length=1)
    revision: OptionalText = Field(
        None, description="commit or tag of the hub id; empty: its main branch, as it is in the local cache"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device of the model; auto: CUDA if available")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="number format; auto: 16 bits on CUDA; on the CPU bfloat16 if the checkpoint is in it and the"
        " processor multiplies it at least twice as fast (1 - cos to float32 <= 1e-4), otherwise float32;"
        " int8: feed-forward products in int8, less exact, on a CPU only",
    )
    max_tokens: int = Field(
        0, ge=0, description="maximum tokens of one text, prompt included; 0: 8192, or the model's own if that is less"
    )
    batch_tokens: int = Field(0, ge=0, description="maximum tokens of one batch; 0: chosen for the device")
    queue_tokens: int = Field(
        0,
        ge=0,
        description="capacity of the queue in tokens, a quarter of it for interactive calls only; a call over it"
        " is refused; 0: 32 batches, at least 16 texts of the maximum length",
    )
    queue_seconds: float = Field(
        10.0,
        gt=0,
        description="seconds of work, as measured, that may wait before an interactive call; a call that finds more is"
        " refused, whatever its own size; less for a call whose deadline is near, and for all in an overload",
    )
    threads: int = Field(0, ge=0, description="CPU threads of the model; 0: one per core")
    tokenizer_threads: int = Field(2, ge=1, description="CPU threads of the tokenizer")
    max_text_bytes: int = Field(4 << 20, ge=1, description="maximum bytes of UTF-8 in one text")

    def engine(self) -> EngineSettings:
        """The settings of the engine."""
        return EngineSettings(
            model=self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            max_tokens=self.max_tokens,
            batch_tokens=self.batch_tokens,
            queue_tokens=self.queue_tokens,
            queue_seconds=self.queue_seconds,
            threads=self.threads or None,
            tokenizer_threads=self.tokenizer_threads,
        )

    def limits(self) -> common_pb2.Limits:
        """The limits that GetModel reports."""
        return common_pb2.Limits(
            max_items=self.max_items, max_text_bytes=self.max_text_bytes, max_message_bytes=self.max_message_bytes
        )
