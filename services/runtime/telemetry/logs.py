"""The log on stderr: plain text or one JSON object per line, with the trace and span ids of the current call.

Texts of callers are never logged. `rpc_status.to_problem` logs exceptions.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Literal

from opentelemetry import trace

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# For lines that scripts wait for; written at every log level.
announcements = logging.getLogger("winnow.start")

# These loggers quote a caller's headers if they are malformed.
_QUOTING = ("opentelemetry.trace.span", "opentelemetry.baggage.propagation")


def configure(level: str, form: Literal["plain", "json"]) -> None:
    """Configures the root logger. For composition roots only, because Python's logging is global."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    announcements.setLevel(logging.INFO)
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.ERROR)


def _ids() -> dict[str, str]:
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}


def _time(record: logging.LogRecord) -> str:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")


class PlainFormatter(logging.Formatter):
    """`time LEVEL logger: message [trace=…]`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        ids = _ids()
        tail = f" trace={ids['trace_id']}" if ids else ""
        if record.exc_info:
            tail += "\n" + self.formatException(record.exc_info)
        return f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{tail}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line. Fields in `extra` become fields of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        fields = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)
