"""Settings of the rerank worker, from RERANK_* variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Listen, OptionalListen
from services.worker.settings import MODELS, WorkerSettings


class RerankSettings(WorkerSettings):
    """Settings of the rerank worker."""

    model_config = SettingsConfigDict(env_prefix="RERANK_")

    listen: Listen = Field("[::]:50052", description="address of the gRPC port; port 0: any free port")
    metrics_listen: OptionalListen = Field("[::]:9092", description="address of the Prometheus endpoint; empty: none")
    model: str = Field(
        str(MODELS / "nano-rerank"), min_length=1, description="model: a folder in Hugging Face layout, or a hub id"
    )
