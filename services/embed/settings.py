"""Settings of the embed worker, from EMBED_* variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Listen, OptionalListen
from services.worker.settings import MODELS, WorkerSettings

_WINDOWS_IN_QUEUE = 4


class EmbedSettings(WorkerSettings):
    """Settings of the embed worker."""

    model_config = SettingsConfigDict(env_prefix="EMBED_")

    listen: Listen = Field("[::]:50051", description="address of the gRPC port; port 0: any free port")
    metrics_listen: OptionalListen = Field("[::]:9091", description="address of the Prometheus endpoint; empty: none")
    model: str = Field(
        str(MODELS / "nano-embed"), min_length=1, description="model: a folder in Hugging Face layout, or a hub id"
    )
    stream_window_tokens: int = Field(
        0, ge=0, description="maximum estimated tokens in flight of one EmbedStream; 0: a quarter of the queue"
    )

    def stream_window(self, queue_tokens: int) -> int:
        """Maximum estimated tokens in flight of one EmbedStream, with a queue of `queue_tokens`."""
        return self.stream_window_tokens or queue_tokens // _WINDOWS_IN_QUEUE
