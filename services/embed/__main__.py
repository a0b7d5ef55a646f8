"""The embed worker: settings → engine → server → serve → drain."""

from __future__ import annotations

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

import logging
import sys
from typing import TYPE_CHECKING

import grpc

from services.api.embed import SERVICE, EmbedService, StreamSettings
from services.embed.backend import EngineBackend
from services.embed.settings import EmbedSettings
from services.engine.types import EngineSettings
from services.runtime.lifecycle import Lifecycle
from services.runtime.settings import load, log_settings
from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry
from services.worker.application import Worker, run
from winnow.embed.v1 import embed_pb2_grpc

if TYPE_CHECKING:
    from services.engine.engine import EmbedEngine


def load_engine(settings: EngineSettings) -> EmbedEngine:
    """Blocking; imports torch only now, on the loading thread, so that the port is bound before."""
    from services.engine.engine import EmbedEngine

    return EmbedEngine.load(settings)


def main() -> None:
    """Runs the process to its end."""
    settings = load(EmbedSettings, sys.argv[1:])
    logs.configure(settings.log_level, settings.log_format)
    log_settings(settings, logging.getLogger("winnow.embed"))
    telemetry = Telemetry.start("winnow-embed", settings.metrics_listen)

    def add(worker: Worker[EmbedEngine], server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        service = EmbedService(
            EngineBackend(worker.engine, worker.metrics),
            settings.limits(),
            StreamSettings(lambda: settings.stream_window(worker.engine().stats().queue_limit_tokens), 0),
            lifecycle.stopping,
        )
        embed_pb2_grpc.add_EmbedServiceServicer_to_server(service, server)

    run(settings, Worker(SERVICE, lambda: load_engine(settings.engine()), add, telemetry), telemetry)


if __name__ == "__main__":
    main()
