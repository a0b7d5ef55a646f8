"""EmbedService over an engine, as a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from services.api.embed import SERVICE, EmbedService, StreamSettings
from services.embed.backend import EngineBackend
from services.embed.settings import EmbedSettings
from services.engine.types import EngineSettings
from services.runtime.lifecycle import Lifecycle
from services.runtime.telemetry.setup import Telemetry
from services.worker.application import Worker
from winnow.embed.v1 import embed_pb2_grpc

if TYPE_CHECKING:
    from services.engine.engine import EmbedEngine


def embed_worker(settings: EmbedSettings, telemetry: Telemetry) -> Worker[EmbedEngine]:
    """The worker that the settings describe; it loads its model when it starts."""

    def add(worker: Worker[EmbedEngine], server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        service = EmbedService(
            EngineBackend(worker.engine, worker.metrics),
            settings.limits(),
            StreamSettings(lambda: settings.stream_window(worker.engine().stats().queue_limit_tokens), retry_for_s=0),
            lifecycle.stopping,
        )
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(service, server)

    return Worker(SERVICE, lambda: _load(settings.engine()), add, telemetry)


def _load(settings: EngineSettings) -> EmbedEngine:
    """Blocks. Imports torch here, on the loading thread, so that the port is bound before."""
    from services.engine.engine import EmbedEngine

    return EmbedEngine.load(settings)
