"""The forms of a log line."""

import json
import logging
import subprocess
import sys

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


LOUD = """
import logging, time
from services.runtime.telemetry import logs
logs.configure("INFO", "plain")
(handler,) = logging.getLogger().handlers
for number in range(20_000):
    logging.info("line %d", number)
print("alive", flush=True)
input()
while handler._lines.qsize():  # there is room again when somebody reads
    time.sleep(0.01)
logging.info("last")
"""


def test_a_log_that_nobody_reads_holds_up_nothing() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOUD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "alive\n"  # a pipe holds some 700 of these lines
        _, log = process.communicate("go on\n", timeout=30)
    lines = log.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:3]] == ["line 0", "line 1", "line 2"]
    assert lines[-1].endswith("last")
    dropped = [int(line.split()[0]) for line in lines if "log lines were dropped" in line]
    assert dropped
    assert sum(dropped) + len(lines) - len(dropped) == 20_000 + 1


def test_what_is_logged_last_is_written() -> None:
    script = "import logging, os; from services.runtime.telemetry import logs; logs.configure('INFO', 'plain')"
    script += "; logging.info('the end'); logging.shutdown(); os._exit(3)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stderr.endswith("the end\n")


def test_a_header_that_grpc_cannot_decode_is_not_quoted() -> None:
    script = """
from grpc._cython import cygrpc
from services.runtime.telemetry import logs
logs.configure("DEBUG", "plain")
import logging
logging.getLogger("grpc._cython.cygrpc").error("Invalid encoding on %s", b"a secret")
logging.getLogger("grpc._cython.cygrpc").error("another error")
logging.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert "secret" not in done.stderr
    assert "another error" in done.stderr
