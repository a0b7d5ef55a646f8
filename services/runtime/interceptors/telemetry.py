"""Records one server span and one duration per call, according to the stable RPC conventions.

Health and reflection are excluded, because probes would outnumber all other calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.runtime.deadline import remaining
from services.runtime.errors import Internal, Problem
from services.runtime.interceptors.interceptor import HEALTH, REFLECTION, Context, Interceptor
from services.runtime.rpc_status import is_stray, to_problem, was_cancelled
from services.runtime.telemetry import names
from services.runtime.telemetry.names import Refusal
from services.runtime.telemetry.refusals import Refusals
from services.runtime.telemetry.setup import Telemetry

# A server span is an error only for these codes; the others are caused by the client.
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class TelemetryInterceptor(Interceptor):
    """Continues the caller's trace and records the call's duration and final status."""

    exempt = (HEALTH, REFLECTION)

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        self._duration = telemetry.histogram(names.SERVER_DURATION)
        self._active: Counter[str] = Counter()  # by method; read on collection, which is cheaper than on each change
        telemetry.levels(names.SERVER_ACTIVE, self._levels)
        self._refusals = Refusals(telemetry)
        self._propagation = telemetry.propagation

    @contextmanager
    def call(self, method: str, context: Context) -> Iterator[None]:
        """Makes the call's span the current one: handlers add attributes by `trace.get_current_span()`."""
        attributes = _attributes(method)
        parent = self._propagation.extract(context.invocation_metadata() or ())
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, dict(attributes))
        token = otel_context.attach(trace.set_span_in_context(span, parent))
        started = time.perf_counter()
        self._active[method] += 1
        code = grpc.StatusCode.UNKNOWN
        try:
            yield
            code = _status(context)
        except grpc.aio.AbortError:
            code = _status(context)
            raise
        except (asyncio.CancelledError, Exception) as error:
            if isinstance(error, asyncio.CancelledError) and not is_stray(error):
                code = _why_cancelled(context)
                raise
            problem = to_problem(error)  # here, so that the incident in the log has this span's trace id
            code = problem.code
            self._note(span, problem)
            try:
                if problem is error:
                    raise  # not from itself
                raise problem from error
            finally:
                del problem  # its traceback refers to this function
        except GeneratorExit:  # a response stream is closed, because the client stopped reading or a write failed
            if was_cancelled():
                code = _why_cancelled(context)
            raise
        finally:
            self._active[method] -= 1
            attributes[names.RPC_STATUS] = code.name
            if code in _SERVER_ERRORS:
                attributes[names.ERROR_TYPE] = code.name
                span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(attributes)
            self._duration.record(time.perf_counter() - started, attributes)
            otel_context.detach(token)
            span.end()

    def _levels(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        return [(calls, _attributes(method)) for method, calls in list(self._active.items())]

    def _note(self, span: trace.Span, problem: Problem) -> None:
        span.set_attribute(names.REASON, problem.reason)
        if isinstance(problem, Internal):
            span.set_attribute(names.INCIDENT, problem.incident)
        if problem.reason in Refusal.__members__:
            self._refusals.add(Refusal[problem.reason])


def _attributes(method: str) -> dict[str, str]:
    return {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: method}


def _status(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """The status that the handler set. grpc.aio returns it as a StatusCode, an int, or None for OK."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


def _why_cancelled(context: Context) -> grpc.StatusCode:
    left = remaining(context)
    return grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED
