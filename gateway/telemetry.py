"""Metrics of the gateway, and the spans of its stages. Texts are never recorded."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.trace import Span

from services.runtime.telemetry import names
from services.runtime.telemetry.names import Refusal
from services.runtime.telemetry.setup import Telemetry

Attributes = Mapping[str, str | int | float | bool]


class GatewayMetrics:
    """Metrics of one process. `kind`: "embed" or "rerank"."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._hits: Counter[str] = Counter()  # by kind
        self._misses: Counter[str] = Counter()
        telemetry.totals(names.CACHE_HITS, lambda: _by_kind(self._hits))
        telemetry.totals(names.CACHE_MISSES, lambda: _by_kind(self._misses))
        self._attempts: Counter[tuple[str, str]] = Counter()  # by kind and attempt
        self._replicas: dict[str, Callable[[], Mapping[names.ReplicaState, int]]] = {}  # by kind
        telemetry.totals(names.WORKER_ATTEMPTS, self._read_attempts)
        telemetry.levels(names.WORKER_REPLICAS, self._read_replicas)
        self._errors = telemetry.counter(names.CACHE_ERRORS)
        self._degraded = telemetry.counter(names.DEGRADED_ANSWERS)
        self._caller_tokens = telemetry.counter(names.CALLER_TOKENS)
        self._caller_refusals = telemetry.counter(names.CALLER_REFUSALS)

    @contextmanager
    def span(self, name: str, attributes: Attributes | None = None) -> Iterator[Span]:
        """A child of the current span. An exception sets `error.type`; its text is not recorded."""
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute(names.ERROR_TYPE, type(error).__name__)
                raise

    def cache_used(self, kind: str, hits: int, misses: int) -> None:
        """Counts the items of one call by whether a cache had them."""
        if hits:
            self._hits[kind] += hits
        if misses:
            self._misses[kind] += misses

    def attempt(self, kind: str, attempt: names.Attempt) -> None:
        """Counts a call that was sent to a worker."""
        self._attempts[kind, attempt] += 1

    def watch_replicas(self, kind: str, read: Callable[[], Mapping[names.ReplicaState, int]]) -> None:
        """Registers what tells the number of a pool's replicas in each state. It is called on another thread."""
        self._replicas[kind] = read

    def cache_error(self, operation: str, kind: str) -> None:
        """Counts a failed cache call. `operation`: "read" or "write"."""
        self._errors.add(1, {names.DB_OPERATION: operation, names.ERROR_TYPE: kind})

    def degraded(self, stage: names.DegradedStage, reason: names.DegradedReason) -> None:
        """Counts a degraded answer."""
        self._degraded.add(1, {names.STAGE: stage.value, names.SHED_REASON: reason.value})

    def caller_used(self, caller: str, tokens: int) -> None:
        """Counts tokens that were computed for a caller."""
        self._caller_tokens.add(tokens, {names.CALLER: caller})

    def caller_refused(self, caller: str, reason: str) -> None:
        """Counts a refused call of a caller. `reason`: that of a Problem; if it is no refusal, nothing is counted."""
        if reason in Refusal.__members__:
            self._caller_refusals.add(1, {names.CALLER: caller, names.SHED_REASON: Refusal[reason].value})

    def _read_attempts(self) -> list[tuple[float, Mapping[str, str]]]:
        attempts = list(self._attempts.items())
        return [(count, {names.KIND: kind, names.ATTEMPT: attempt}) for (kind, attempt), count in attempts]

    def _read_replicas(self) -> list[tuple[float, Mapping[str, str]]]:
        return [
            (count, {names.KIND: kind, names.STATE: state})
            for kind, read in list(self._replicas.items())
            for state, count in read().items()
        ]


def _by_kind(items: Counter[str]) -> list[tuple[float, Mapping[str, str]]]:
    return [(count, {names.KIND: kind}) for kind, count in list(items.items())]
