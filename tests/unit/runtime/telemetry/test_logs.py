"""The forms of a log line."""

import json
import logging

import pytest

from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry


@pytest.mark.parametrize("form", ["plain", "json"])
def test_log_lines_carry_the_trace(form: str) -> None:
    made = Telemetry.start("winnow-test")
    formatter = logs.JsonFormatter() if form == "json" else logs.PlainFormatter()
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "said %s", "args": ("it",), "address": "x"}
    )
    with made.tracer.start_as_current_span("x") as span:
        line = formatter.format(record)
    trace = f"{span.get_span_context().trace_id:032x}"
    made.shutdown()
    if form == "json":
        fields = json.loads(line)
        assert (fields["message"], fields["trace_id"], fields["address"]) == ("said it", trace, "x")
    else:
        assert line.endswith(f"INFO a: said it trace={trace}")
    assert "trace" not in formatter.format(record)
