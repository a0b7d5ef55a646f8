"""What is wrong with a Redis server: a closed set of faults, and one log line for each change.

redis-py turns the error code of a refusal ("OOM", "NOPERM") into an exception class and removes it from the text. Codes
without a class stay in the text. The text of a refusal may quote what a caller sent, so it is never logged.
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

# A fault that comes and goes is logged at most once in this time.
_AGAIN_S = 10.0

log = logging.getLogger("winnow.redis")


class Fault(StrEnum):
    """What is wrong. The value is the `error.type` of metrics: redis-py's class, or a name like one."""

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
# Beginnings of refusals that have no class of their own: they are a ResponseError or a ConnectionError.
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

# For the operator. `setting` is the variable with the URL, `command` the command that was refused.
_DESCRIPTIONS = {
    Fault.OUT_OF_MEMORY: "is out of memory and refuses {command}: raise its maxmemory, or delete data",
    Fault.READ_ONLY: "is a read-only replica: {setting} must name the master",
    Fault.AUTHENTICATION: "rejects the user or password: check {setting}",
    Fault.NO_PERMISSION: "does not let the user of {setting} run {command} on winnow's keys: grant it (ACL SETUSER)",
    Fault.PROTECTED: "is in protected mode: set a password, or bind it to the right address",
    Fault.NO_DATABASE: "has no database with that number: check the path of {setting}",
    Fault.LOADING: "is still loading its data",
    Fault.BUSY: "is busy with a script",
    Fault.NOT_SAVED: "refuses {command} because it cannot write to disk: see its log",
    Fault.TOO_FEW_REPLICAS: "refuses {command} because it has fewer replicas than min-replicas-to-write",
    Fault.TOO_MANY_CLIENTS: "has reached its maximum number of clients: raise its maxclients",
    Fault.CLUSTER_DOWN: "reports that the cluster is down: some slots have no master",
    Fault.MASTER_DOWN: "is a replica without its master",
    Fault.NO_CLUSTER: "is not a cluster: remove +cluster from {setting}",
    Fault.UNKNOWN_COMMAND: "does not know {command}",
    Fault.REFUSED: "refuses {command}",
    Fault.TIMEOUT: "does not answer in time",
    Fault.UNREACHABLE: "cannot be reached",
}


def fault_of(error: BaseException) -> Fault:
    """The fault behind an exception of redis-py."""
    for kind, fault in _CLASSES:
        if isinstance(error, kind):
            return fault
    text = str(error)
    for beginning, fault in _TEXTS:
        if text.startswith(beginning):
            return fault
    return Fault.REFUSED if isinstance(error, ResponseError) else Fault.UNREACHABLE


def is_filter_error(error: BaseException) -> bool:
    """True if VSIM refuses its FILTER: the caller's mistake, not a fault of the server."""
    return type(error) is ResponseError and "FILTER" in str(error)


class FaultLog:
    """One line when a server begins to fail in some way, and one when it works again.

    Args:
        what: What the server is used for ("cache").
        setting: The variable with its URL.
    """

    def __init__(self, what: str, setting: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._setting, self._clock = what, setting, clock
        # By server and fault: the operations that fail with it; empty if it concerns all operations.
        self._failing: dict[tuple[str, Fault], set[object]] = {}
        self._logged_at: dict[tuple[str, Fault], float] = {}
        self._logged: set[tuple[str, Fault]] = set()

    def failed(self, server: str, error: BaseException, command: tuple[Any, ...] = ()) -> None:
        """Records that `server` (HOST:PORT) has failed, or refused `command`."""
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
        """Records that `server` has run `command`, or accepted a connection."""
        if not self._failing:
            return
        for key, operations in list(self._failing.items()):
            if key[0] == server and (not operations or _operation(command) in operations):
                del self._failing[key]
                if key in self._logged:
                    self._logged.discard(key)
                    log.info("%s: Redis at %s works again (was: %s)", self._what, server, key[1].value)


def _operation(command: tuple[Any, ...]) -> object:
    """What a fault is recorded for: a command, or one script, since a refusal may depend on what the script does."""
    return command[:2] if command[:1] == ("EVAL",) else command[:1]
