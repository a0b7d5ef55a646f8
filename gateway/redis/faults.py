"""What is wrong with a Redis: a closed set of faults, by redis-py's classes, and one line in the log for each change.

redis-py turns the code before a refusal ("OOM", "NOPERM") into a class and strips it off. Codes that it has no class
for stay in the text. A refusal's text may quote what a caller sent, so it is never logged.
"""

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

# A fault that comes and goes is told once in so long.
_AGAIN_S = 10.0

log = logging.getLogger("winnow.redis")


class Fault(StrEnum):
    """What is wrong. The value is the `error.type` of metrics: redis-py's class, or a name in its manner."""

    OUT_OF_MEMORY = "OutOfMemoryError"
    READ_ONLY = "ReadOnlyError"
    AUTHENTICATION = "AuthenticationError"
    NO_PERMISSION = "NoPermissionError"
    PROTECTED = "ProtectedModeError"
    NO_DATABASE = "NoDatabaseError"
    LOADING = "BusyLoadingError"
    BUSY = "BusyError"
    NOT_SAVED = "NotSavedError"
    TOO_FEW_REPLICAS = "TooFewReplicasError"
    TOO_MANY_CLIENTS = "TooManyClientsError"
    CLUSTER_DOWN = "ClusterDownError"
    MASTER_DOWN = "MasterDownError"
    NO_CLUSTER = "NoClusterError"
    UNKNOWN_COMMAND = "UnknownCommandError"
    MOVING = "MovedError"
    REFUSED = "ResponseError"
    TIMEOUT = "TimeoutError"
    UNREACHABLE = "ConnectionError"


_CLASSES: tuple[tuple[type[Exception], Fault], ...] = (
    (OutOfMemoryError, Fault.OUT_OF_MEMORY),
    (ReadOnlyError, Fault.READ_ONLY),
    (AuthenticationError, Fault.AUTHENTICATION),
    (AuthenticationWrongNumberOfArgsError, Fault.AUTHENTICATION),
    (AuthorizationError, Fault.AUTHENTICATION),
    (NoPermissionError, Fault.NO_PERMISSION),
    (BusyLoadingError, Fault.LOADING),
    (MasterDownError, Fault.MASTER_DOWN),
    (ClusterDownError, Fault.CLUSTER_DOWN),
    (AskError, Fault.MOVING),
    (TryAgainError, Fault.MOVING),
    (RedisTimeoutError, Fault.TIMEOUT),
    (TimeoutError, Fault.TIMEOUT),
)
# How a refusal begins that is a ResponseError, or a ConnectionError, like many others.
_TEXTS: tuple[tuple[str, Fault], ...] = (
    ("unknown command", Fault.UNKNOWN_COMMAND),
    ("ACL failure in script", Fault.NO_PERMISSION),
    ("DENIED", Fault.PROTECTED),
    ("DB index is out of range", Fault.NO_DATABASE),
    ("SELECT is not allowed in cluster mode", Fault.NO_DATABASE),
    ("BUSY", Fault.BUSY),
    ("MISCONF", Fault.NOT_SAVED),
    ("NOREPLICAS", Fault.TOO_FEW_REPLICAS),
    ("max number of clients", Fault.TOO_MANY_CLIENTS),
    ("This instance has cluster support disabled", Fault.NO_CLUSTER),
    ("Cluster mode is not enabled", Fault.NO_CLUSTER),
)

# For the operator. `setting` is where the URL comes from, `command` what was refused.
_DESCRIPTIONS = {
    Fault.OUT_OF_MEMORY: "is out of memory and refuses {command}: raise its maxmemory, or let go of data",
    Fault.READ_ONLY: "is a read-only replica: {setting} must lead to the master",
    Fault.AUTHENTICATION: "refuses user or password: check those in {setting}",
    Fault.NO_PERMISSION: "does not let the user of {setting} run {command} on winnow's keys: grant it (ACL SETUSER)",
    Fault.PROTECTED: "is in protected mode: set a password, or bind it to the right address",
    Fault.NO_DATABASE: "has no database of that number: check the path of {setting}",
    Fault.LOADING: "is still loading its data",
    Fault.BUSY: "is busy with a script",
    Fault.NOT_SAVED: "refuses {command}, since it cannot save to its disk: see its own log",
    Fault.TOO_FEW_REPLICAS: "refuses {command}, since it has fewer replicas than min-replicas-to-write",
    Fault.TOO_MANY_CLIENTS: "has no connection left: raise its maxclients",
    Fault.CLUSTER_DOWN: "says that the cluster is down: some slots have no master",
    Fault.MASTER_DOWN: "is a replica without its master",
    Fault.NO_CLUSTER: "is no cluster: write {setting} without +cluster",
    Fault.UNKNOWN_COMMAND: "does not know {command}",
    Fault.REFUSED: "refuses {command}",
    Fault.TIMEOUT: "does not answer in time",
    Fault.UNREACHABLE: "cannot be reached",
}


def fault_of(error: BaseException) -> Fault:
    """What an exception of redis-py means."""
    for kind, fault in _CLASSES:
        if isinstance(error, kind):
            return fault
    text = str(error)
    for beginning, fault in _TEXTS:
        if text.startswith(beginning):
            return fault
    return Fault.REFUSED if isinstance(error, ResponseError) else Fault.UNREACHABLE


def is_filter_error(error: BaseException) -> bool:
    """True where VSIM refuses its FILTER, which is the fault of whoever wrote it."""
    return type(error) is ResponseError and "FILTER" in str(error)


class FaultLog:
    """One line when a server begins to fail in some way, and one when it works again.

    Args:
        what: What it is used for ("cache").
        setting: Variable with its URL.
    """

    def __init__(self, what: str, setting: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._setting, self._clock = what, setting, clock
        # By server and fault: the operations that fail so; none where it is of no single one.
        self._failing: dict[tuple[str, Fault], set[object]] = {}
        self._logged_at: dict[tuple[str, Fault], float] = {}
        self._logged: set[tuple[str, Fault]] = set()

    def failed(self, server: str, error: BaseException, command: tuple[Any, ...] = ()) -> None:
        """`server` (HOST:PORT) has failed, or refused `command`."""
        fault = fault_of(error)
        if fault is Fault.MOVING or is_filter_error(error):
            return
        key = (server, fault)
        operations = self._failing.setdefault(key, set())
        if command:
            operations.add(_operation(command))
        now = self._clock()
        if key in self._logged or now < self._logged_at.get(key, -_AGAIN_S) + _AGAIN_S:
            return
        self._logged.add(key)
        self._logged_at[key] = now
        text = _DESCRIPTIONS[fault].format(setting=self._setting, command=command[0] if command else "commands")
        log.warning("%s: Redis at %s %s", self._what, server, text, extra={"fault": fault.value})

    def worked(self, server: str, command: tuple[Any, ...] = ()) -> None:
        """`server` has carried out `command`, or let us in."""
        if not self._failing:
            return
        for key, operations in list(self._failing.items()):
            if key[0] == server and (not operations or _operation(command) in operations):
                del self._failing[key]
                if key in self._logged:
                    self._logged.discard(key)
                    log.info("%s: Redis at %s works again (was: %s)", self._what, server, key[1].value)


def _operation(command: tuple[Any, ...]) -> object:
    """A script may be refused for what it does."""
    return command[:2] if command[:1] == ("EVAL",) else command[:1]
