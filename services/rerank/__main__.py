"""The rerank worker: settings → engine → server → serve → drain."""

from __future__ import annotations

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

import logging
import sys
from typing import TYPE_CHECKING

import grpc

from services.api.rerank import SERVICE, RerankService
from services.engine.types import EngineSettings
from services.rerank.backend import EngineBackend
from services.rerank.card import recommended_retrieval_weight
from services.rerank.settings import RerankSettings
from services.runtime.lifecycle import Lifecycle
from services.runtime.settings import load, log_settings
from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry
from services.worker.application import Worker, run
from winnow.rerank.v1 import rerank_pb2_grpc

if TYPE_CHECKING:
    from services.engine.engine import RerankEngine


def load_engine(settings: EngineSettings) -> RerankEngine:
    """Blocking; imports torch only now, on the loading thread, so that the port is bound before."""
    from services.engine.engine import RerankEngine

    return RerankEngine.load(settings)


def main() -> None:
    """Runs the process to its end."""
    settings = load(RerankSettings, sys.argv[1:])
    logs.configure(settings.log_level, settings.log_format)
    log_settings(settings, logging.getLogger("winnow.rerank"))
    weight = recommended_retrieval_weight(settings.model)
    telemetry = Telemetry.start("winnow-rerank", settings.metrics_listen)

    def add(worker: Worker[RerankEngine], server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        backend = EngineBackend(worker.engine, worker.metrics, weight)
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(RerankService(backend, settings.limits()), server)

    run(settings, Worker(SERVICE, lambda: load_engine(settings.engine()), add, telemetry), telemetry)


if __name__ == "__main__":
    main()
