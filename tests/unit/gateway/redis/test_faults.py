"""A closed set of faults, and one line for each change."""

import logging

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import RedisError

from gateway.redis.faults import Fault, FaultLog, fault_of


def parse_error(reply: str) -> Exception:
    """The error that redis-py raises for a reply."""
    error: Exception = BaseParser.parse_error(reply)
    return error


SERVER = "127.0.0.1:6379"
OOM = "OOM command not allowed when used memory > 'maxmemory'."
NOPERM = "NOPERM User x has no permissions to run the 'set' command"


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (OOM, Fault.OUT_OF_MEMORY),
        (f"{OOM} script: 219bb33e, on @user_script:1.", Fault.OUT_OF_MEMORY),
        ("READONLY You can't write against a read only replica.", Fault.READ_ONLY),
        ("WRONGPASS invalid username-password pair or user is disabled.", Fault.AUTHENTICATION),
        ("NOAUTH Authentication required.", Fault.AUTHENTICATION),
        ("ERR invalid password", Fault.AUTHENTICATION),
        (NOPERM, Fault.NO_PERMISSION),
        ("ERR ACL failure in script: User x has no permissions to run the 'set' command", Fault.NO_PERMISSION),
        ("DENIED Redis is running in protected mode because", Fault.PROTECTED),
        ("ERR DB index is out of range", Fault.NO_DATABASE),
        ("ERR SELECT is not allowed in cluster mode", Fault.NO_DATABASE),
        ("LOADING Redis is loading the dataset in memory", Fault.LOADING),
        ("BUSY Redis is busy running a script.", Fault.BUSY),
        ("MISCONF Redis is configured to save RDB snapshots", Fault.NOT_SAVED),
        ("NOREPLICAS Not enough good replicas to write.", Fault.TOO_FEW_REPLICAS),
        ("ERR max number of clients reached", Fault.TOO_MANY_CLIENTS),
        ("CLUSTERDOWN The cluster is down", Fault.CLUSTER_DOWN),
        ("MASTERDOWN Link with MASTER is down", Fault.MASTER_DOWN),
        ("ERR This instance has cluster support disabled", Fault.NO_CLUSTER),
        ("ERR unknown command 'VADD', with args beginning with: 'x'", Fault.UNKNOWN_COMMAND),
        ("MOVED 3999 127.0.0.1:6381", Fault.MOVING),
        ("ASK 3999 127.0.0.1:6381", Fault.MOVING),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Fault.MOVING),
        ("WRONGTYPE Operation against a key", Fault.REFUSED),
        ("ERR syntax error", Fault.REFUSED),
        ("You said something new", Fault.REFUSED),
    ],
)
def test_every_reply_has_its_fault(reply: str, fault: Fault) -> None:
    assert fault_of(parse_error(reply)) is fault


@pytest.mark.parametrize(
    ("error", "fault"),
    [(TimeoutError(), Fault.TIMEOUT), (OSError(), Fault.UNREACHABLE), (RedisError(), Fault.UNREACHABLE)],
)
def test_so_has_silence(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(caplog: pytest.LogCaptureFixture, clock: Clock) -> FaultLog:
    caplog.set_level(logging.INFO, "winnow.redis")
    return FaultLog("cache", "GATEWAY_CACHE_URL", clock)


def test_one_line_when_it_begins_and_one_when_it_ends(faults: FaultLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        faults.failed(SERVER, parse_error(OOM), ("SET", "k", "v"))
        faults.worked(SERVER, ("GET", "k"))
    assert len(caplog.messages) == 1
    assert "maxmemory" in caplog.text
    for _ in range(3):
        faults.worked(SERVER, ("SET", "k", "v"))
    assert len(caplog.messages) == 2
    assert "works again" in caplog.text


def test_what_comes_and_goes_does_not_fill_the_log(
    faults: FaultLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        faults.failed(SERVER, TimeoutError())
        faults.worked(SERVER, ("GET", "k"))
    assert len(caplog.messages) == 2
    clock.now = 60.0
    faults.failed(SERVER, TimeoutError())
    assert len(caplog.messages) == 3


def test_a_script_that_only_reads_says_nothing_about_one_that_writes(
    faults: FaultLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.failed(SERVER, parse_error(OOM), ("EVAL", "write", 1, "k"))
    faults.worked(SERVER, ("EVAL", "read", 1, "k"))
    assert len(caplog.messages) == 1


def test_the_setting_is_named_and_no_text_of_a_caller_is_quoted(
    faults: FaultLog, caplog: pytest.LogCaptureFixture
) -> None:
    faults.failed(SERVER, parse_error("ERR unknown command 'VSIM', with args: 'private'"), ("VSIM", "private"))
    faults.failed(SERVER, parse_error("WRONGPASS invalid username-password pair"))
    faults.failed(SERVER, parse_error("ERR syntax error in FILTER expression near private"), ("VSIM", "k"))
    assert len(caplog.messages) == 2
    assert "GATEWAY_CACHE_URL" in caplog.text
    assert "private" not in caplog.text
