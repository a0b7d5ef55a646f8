"""EmbedService of the gateway: that of `services.api`, with a cache of serialised results."""

import asyncio
import time
from collections.abc import Hashable, Sequence

from gateway.cache.encoded_results import EncodedResultCache
from gateway.models.embedder import Embedder
from gateway.telemetry import GatewayMetrics
from services.api.embed import EmbedService, Results, StreamSettings, describe
from services.api.options import EmbedOptions, VectorFormat
from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2


class CachedEmbedService(EmbedService):
    """Serves the embedder. Results of cached texts are kept in serialised form."""

    def __init__(
        self,
        embedder: Embedder,
        encoded: EncodedResultCache,
        metrics: GatewayMetrics,
        limits: common_pb2.Limits,
        stream: StreamSettings,
        stopping: asyncio.Event,
    ) -> None:
        super().__init__(embedder, limits, stream, stopping)
        self._encoded_results, self._metrics = encoded, metrics

    async def respond(
        self,
        request: embed_pb2.EmbedRequest,
        model: embed_pb2.GetModelResponse,
        options: EmbedOptions,
        form: VectorFormat,
        end: float | None,
        began: float,
    ) -> embed_pb2.EmbedResponse | bytes:
        """If all results are in the cache in this form, the response is their concatenation."""
        encoded = self._encoded_results.get(encoded_key(model, options, form), request.texts)
        if encoded is None:
            return await super().respond(request, model, options, form, end, began)
        count, tokens = len(encoded), sum([result.tokens for result in encoded])
        self._metrics.cache_used("embed", count, 0)
        describe(model.model, form.dimensions, count, tokens)
        rest = embed_pb2.EmbedResponse(
            model=model.model,
            usage=common_pb2.Usage(input_tokens=tokens, cache_hits=count),
            timings=common_pb2.Timings(total_ms=(time.perf_counter() - began) * 1e3),
        )
        parts = [result.data for result in encoded]
        parts.append(rest.SerializeToString())
        return b"".join(parts)

    async def results(
        self,
        texts: Sequence[str],
        paths: Sequence[str],
        options: EmbedOptions,
        form: VectorFormat,
        end: float | None,
        part: int = 0,
    ) -> Results:
        """Keeps the results of texts that were in the cache: a text that came twice may come again."""
        outcome = await super().results(texts, paths, options, form, end, part)
        if outcome.embedded is not None:
            key = encoded_key(outcome.embedded.model, options, form)
            for text, result in zip(texts, outcome.results, strict=True):
                if result.cache_hit:
                    self._encoded_results.put(key, text, result)
        return outcome


def encoded_key(model: embed_pb2.GetModelResponse, options: EmbedOptions, form: VectorFormat) -> Hashable:
    """Everything that decides the serialised result of a text, except the text."""
    return model.model.fingerprint, options.resolved(model).identity(), form
