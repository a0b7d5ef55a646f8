"""The log on stderr: plain text or one JSON object per line, with the trace and span ids of the current call.

Texts of callers are never logged. `rpc_status.to_problem` logs exceptions.
"""

from __future__ import annotations

import datetime
import json
import logging
import queue
import sys
import threading
from typing import Literal, TextIO

from opentelemetry import trace

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# For lines that scripts wait for; written at every log level.
announcements = logging.getLogger("winnow.start")

_WAITING_LINES, _FLUSH_SECONDS = 10_000, 1.0

# These loggers quote a caller's headers if they are malformed.
_QUOTING = ("opentelemetry.trace.span", "opentelemetry.baggage.propagation")
# grpc does so at ERROR, with a traceback, and then goes on.
_GRPC, _GRPC_QUOTES = "grpc._cython.cygrpc", "Invalid encoding on"


def configure(level: str, form: Literal["plain", "json"]) -> None:
    """Configures the root logger. For composition roots only, because Python's logging is global."""
    handler = BackgroundHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    announcements.setLevel(logging.INFO)
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger(_GRPC).addFilter(lambda record: not str(record.msg).startswith(_GRPC_QUOTES))


class BackgroundHandler(logging.Handler):
    """Writes lines on a thread of its own, so that a stream that nobody reads (a full pipe) holds up no caller.

    Lines that find no room are dropped; how many is the first line when there is room again. `flush` waits a moment.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | threading.Event] = queue.Queue(_WAITING_LINES)
        self._dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Formats the record here, where its trace is the current one, and leaves it to the thread."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Returns when what was logged before is written, or after a second."""
        written = threading.Event()
        try:
            self._lines.put(written, timeout=_FLUSH_SECONDS)
        except queue.Full:
            return
        written.wait(_FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            if dropped := self._dropped:
                self._dropped -= dropped
                line = f"{dropped} log lines were dropped: nobody read them\n{line}"
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except (OSError, ValueError):  # the reader has gone, or the stream is closed
                continue


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
