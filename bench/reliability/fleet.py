"""Redis, workers and gateways as processes on loopback, each of which can be killed, frozen and started again."""

import os
import re
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.machine import ROOT
from bench.reliability.calls import target
from bench.reliability.certificates import Certificates
from deploy.local.process import Process, StartError, python_module
from deploy.local.redis import NEEDED, find_redis_server, redis_arguments
from deploy.local.settings import settings_in
from deploy.local.watchdog import Watchdog

EMBED_PACE, RERANK_PACE = 4_000.0, 16_000.0  # tokens per second of a worker
_START_S = 180.0
_NOBODY = "127.0.0.1:1"
_READY = {"redis": "eady to accept connections"}
_SERVING = r"\bserving winnow\."


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds. Memory in MB; `peak_mb` since `forget_peak`."""

    rss_mb: float
    peak_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class _Member:
    command: list[str | Path]
    environment: dict[str, str]


class Fleet:
    """`embed` and `rerank`: the tokens per second of each worker, or the folder of a model that it really computes.

    Members are called `redis`, `embed-0`, …, `rerank-0`, …, `gateway-0`, …; their addresses are known before they
    start, so that a proxy can stand before them: `via` has the address under which gateways reach a member. `settings`
    are environment variables; all others are left at their defaults. With `secure`, all connections but those to Redis
    have TLS, with certificates on both sides, and callers need a token: `tls` is the folder of what a caller shows.
    """

    def __init__(
        self,
        embed: Sequence[float | Path] = (EMBED_PACE,),
        rerank: Sequence[float | Path] = (RERANK_PACE,),
        gateways: int = 1,
        settings: Mapping[str, str] | None = None,
        *,
        secure: bool = False,
    ) -> None:
        self._secure = secure
        self.tls = ""
        self._settings = settings_in(settings or {})
        self._models: dict[str, float | Path] = {
            f"{kind}-{place}": model for kind, models in (("embed", embed), ("rerank", rerank))
            for place, model in enumerate(models)
        }  # fmt: skip
        self.workers = list(self._models)
        self.gateways = [f"gateway-{place}" for place in range(gateways)]
        self.addresses = _free_addresses(["redis", *self.workers, *self.gateways])
        self.via: dict[str, str] = {}
        self.reached: dict[str, Sequence[str]] = {}
        """The workers of a gateway; by default all."""
        self.within: dict[str, Sequence[str]] = {}
        """What stands before the command of a worker: that of the namespace it runs in."""
        self._members: dict[str, _Member] = {}
        self._processes: dict[str, Process] = {}
        self._stack = ExitStack()
        inherited = settings_in(os.environ)
        self._inherited = {name: value for name, value in os.environ.items() if name.upper() not in inherited}

    def __enter__(self) -> Self:
        try:
            self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="winnow-chaos-")))
            if self._secure:
                self.tls = str(self.folder / "tls")
                Path(self.tls).mkdir()
                self._certificates = Certificates(Path(self.tls))
                self._settings |= self._certificates.settings()
            self._watchdog = Watchdog()
            self._stack.callback(self._watchdog.close)
            self._stack.callback(self._stop_all)
            self._members = {"redis": self._redis(), **{name: self._worker(name) for name in self.workers}}
            self._members |= {name: self._gateway(name) for name in self.gateways}
            for name in self._members:
                self.start(name)
            for name in self._members:
                self.await_ready(name)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def target(self, kind: str) -> str:
        """The gRPC target of all gateways, embed or rerank workers, as they listen."""
        return target(address for name, address in self.addresses.items() if _kind(name) == kind)

    def worker_target(self, kind: str) -> str:
        """The target of the workers that compute a call of this kind, or an empty string if several do."""
        return self.target(kind) if kind in ("embed", "rerank") else ""

    @property
    def redis_url(self) -> str:
        """Of the private server."""
        return f"redis://{self.via.get('redis', self.addresses['redis'])}"

    def start(self, name: str) -> None:
        """Starts a member at its address."""
        member = self._members[name]
        self._processes[name] = Process(
            name, member.command, member.environment, self.folder / f"{name}.log", self._inherited, self._watchdog.watch
        )

    def await_ready(self, name: str) -> None:
        """Waits until a member serves. Raises StartError."""
        self._processes[name].wait_for(_READY.get(name, _SERVING), _START_S)

    def stop(self, name: str, grace: float = 40.0) -> None:
        """SIGTERM, and wait for the end."""
        process = self._processes.pop(name)
        self._signal(process, signal.SIGCONT)  # a frozen one hears nothing
        process.stop(grace)
        self._watchdog.forget(process.pid)

    def restart(self, name: str) -> None:
        """SIGTERM, then the same again at the same address."""
        self.stop(name)
        self.start(name)
        self.await_ready(name)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self._processes.pop(name)
        process.kill()
        self._watchdog.forget(process.pid)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._signal(self._processes[name], signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._signal(self._processes[name], signal.SIGCONT)

    def running(self, name: str) -> bool:
        """Whether a member has not ended."""
        return self._processes[name].running

    def metrics_address(self, name: str) -> str:
        """Where a member's metrics are read."""
        return self._processes[name].metrics_address()

    def renew(self) -> None:
        """Other certificates for all, if there are any: for connections from now on."""
        if self._secure:
            self._certificates.renew()

    def usage(self, name: str) -> Usage:
        """What a member holds now."""
        folder = Path(f"/proc/{self._processes[name].pid}")
        status = (folder / "status").read_text()

        def number(key: str) -> int:
            found = re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)
            return int(found.group(1)) if found else 0

        descriptors = len(list((folder / "fd").iterdir()))
        return Usage(number("VmRSS") / 1024, number("VmHWM") / 1024, descriptors, number("Threads"))

    def forget_peak(self, name: str) -> None:
        """From now on, `usage` tells a new peak."""
        Path(f"/proc/{self._processes[name].pid}/clear_refs").write_text("5")

    def _stop_all(self) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name, grace=5.0)

    @staticmethod
    def _signal(process: Process, number: signal.Signals) -> None:
        if process.running:
            os.kill(process.pid, number)

    def _redis(self) -> _Member:
        server = find_redis_server()
        if server is None:
            raise StartError(f"Redis {NEEDED} or later is not installed")
        data = self.folder / "redis"
        data.mkdir()
        host, _, port = self.addresses["redis"].rpartition(":")
        own = ["--port", port, "--bind", host]
        return _Member([server, *redis_arguments(self.folder / "redis.sock", data), *own], {})

    def _worker(self, name: str) -> _Member:
        kind, model, within = _kind(name), self._models[name], self.within.get(name, ())
        environment = self._environment(name)
        if isinstance(model, Path):
            environment.setdefault(f"{kind.upper()}_MODEL", str(model))
            return _Member([*within, *python_module(f"services.{kind}")], environment)
        # It hardly computes, and threads of several workers would only wait for each other.
        environment.setdefault(f"{kind.upper()}_THREADS", "1")
        environment.setdefault(f"{kind.upper()}_DTYPE", "float32")  # the same on all: no probe decides
        return _Member([*within, *python_module("bench.reliability.paced_worker"), kind, str(model)], environment)

    def _gateway(self, name: str) -> _Member:
        reached = self.reached.get(name, self.workers)
        targets = {}
        for kind in ("embed", "rerank"):
            workers = [self.via.get(worker, self.addresses[worker]) for worker in reached if _kind(worker) == kind]
            targets[f"GATEWAY_{kind.upper()}_TARGET"] = target(workers or [_NOBODY])
        environment = {"GATEWAY_REDIS_URL": self.redis_url, **targets, **self._environment(name)}
        return _Member([*python_module("gateway")], environment)

    def _environment(self, name: str) -> dict[str, str]:
        prefix = f"{_kind(name).upper()}_"
        own = {key: value for key, value in self._settings.items() if key.startswith(prefix)}
        listen = {f"{prefix}LISTEN": self.addresses[name], f"{prefix}METRICS_LISTEN": "127.0.0.1:0"}
        return {"PYTHONPATH": str(ROOT), **listen, **own}


def _kind(name: str) -> str:
    return name.rpartition("-")[0]


def _free_addresses(names: Sequence[str]) -> dict[str, str]:
    """An address on loopback for each, that nobody has now."""
    with ExitStack() as held:
        sockets = {name: held.enter_context(socket.socket()) for name in names}
        for one in sockets.values():
            one.bind(("127.0.0.1", 0))
        return {name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in sockets.items()}
