"""Names of metrics, as Prometheus shows them."""

from services.runtime.telemetry import names
from services.runtime.telemetry.setup import Telemetry
from tests.support.otlp import scraped


async def test_names_are_the_same_in_prometheus(telemetry: Telemetry) -> None:
    telemetry.gauge(names.QUEUE_TOKENS, lambda: 12)
    telemetry.gauge(names.QUEUE_SECONDS, lambda: 0.5)
    telemetry.histogram(names.BATCH_TOKENS).record(100)
    telemetry.histogram(names.UNIQUE_TOKEN_RATIO).record(0.5)
    telemetry.counter(names.CACHE_HITS).add(1)
    telemetry.counter(names.CACHE_MISSES).add(1)
    telemetry.counter(names.CACHE_ERRORS).add(1)
    telemetry.counter(names.DEGRADED_ANSWERS).add(1, {names.STAGE: "rerank", names.SHED_REASON: "deadline"})
    seen = await scraped(telemetry)
    assert seen["winnow_queue_tokens"] == 12
    assert seen["winnow_queue_seconds"] == 0.5
    assert seen['winnow_batch_tokens_bucket{le="128.0"}'] == 1
    assert seen['winnow_batch_tokens_bucket{le="64.0"}'] == 0
    assert seen['winnow_unique_token_ratio_bucket{le="0.5"}'] == 1
    for name in ("winnow_cache_hits_total", "winnow_cache_misses_total", "winnow_cache_errors_total"):
        assert seen[name] == 1
    assert seen['winnow_degraded_total{reason="deadline",stage="rerank"}'] == 1
