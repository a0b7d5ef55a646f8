"""RerankService over an engine, as a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from services.api.rerank import SERVICE, RerankService
from services.engine.types import EngineSettings
from services.rerank.backend import EngineBackend
from services.rerank.model_card import recommended_retrieval_weight
from services.rerank.settings import RerankSettings
from services.runtime.lifecycle import Lifecycle
from services.runtime.telemetry.setup import Telemetry
from services.worker.application import Worker
from winnow.rerank.v1 import rerank_pb2_grpc

if TYPE_CHECKING:
    from services.engine.engine import RerankEngine


def rerank_worker(settings: RerankSettings, telemetry: Telemetry) -> Worker[RerankEngine]:
    """The worker that the settings describe; it loads its model when it starts.

    ValueError if the model's card is malformed.
    """
    weight = recommended_retrieval_weight(settings.model)

    def add(worker: Worker[RerankEngine], server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
        service = RerankService(EngineBackend(worker.engine, worker.metrics, weight), settings.limits())
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(service, server)

    return Worker(SERVICE, lambda: _load(settings.engine()), add, telemetry)


def _load(settings: EngineSettings) -> RerankEngine:
    """Blocks. Imports torch here, on the loading thread, so that the port is bound before."""
    from services.engine.engine import RerankEngine

    return RerankEngine.load(settings)
