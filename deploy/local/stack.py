"""A stack: Redis, both workers and the gateway on one machine."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.folder import Folder
from deploy.local.process import Process, StartError, python_module
from deploy.local.redis import NEEDED, find_redis_server, redis_arguments
from deploy.local.settings import PARTS, check_addresses, reachable, settings_in
from deploy.local.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[2]
_MODULES = {"embed": "services.embed", "rerank": "services.rerank", "gateway": "gateway"}
_SILENCE_SECONDS = 600.0  # a large model takes minutes to load and logs nothing meanwhile
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the processes on loopback. 0: any free port."""

    gateway: int = 50050
    embed: int = 50051
    rerank: int = 50052
    gateway_metrics: int = 9090
    embed_metrics: int = 9091
    rerank_metrics: int = 9092
    gateway_http: int = 8080

    def settings(self) -> dict[str, str]:
        """The settings for these ports."""
        http = {"GATEWAY_HTTP_LISTEN": f"127.0.0.1:{self.gateway_http}"}
        return http | {
            f"{part.upper()}_{setting}": f"127.0.0.1:{getattr(self, part + suffix)}"
            for part in PARTS
            for setting, suffix in (("LISTEN", ""), ("METRICS_LISTEN", "_metrics"))
        }


FREE_PORTS = Ports(0, 0, 0, 0, 0, 0, 0)


class Stack:
    """Starts the processes, knows their addresses, and stops them in reverse order.

    A context manager: all processes are stopped on exit, also after Ctrl-C or if a later process fails to start. If
    this process is killed, a watchdog stops them.

    `environment` has settings that override the stack's own. A process that they place elsewhere (GATEWAY_EMBED_TARGET,
    GATEWAY_RERANK_TARGET, GATEWAY_REDIS_URL) is not started. The processes inherit other variables from `inherited`.
    Logs are written to `folder`; without it they are deleted with the stack. With `keep_data`, Redis keeps its data in
    `folder`, too. `held` defers signals while a process is started and recorded.
    """

    def __init__(
        self,
        ports: Ports = FREE_PORTS,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
        *,
        inherited: Mapping[str, str] | None = None,
        folder: Folder | None = None,
        keep_data: bool = False,
        held: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._given = settings_in(environment or {})
        self._settings = ports.settings() | self._given
        self._others = {name: value for name, value in (environment or {}).items() if name.startswith("OTEL_")}
        self._inherited = dict(os.environ if inherited is None else inherited)
        self._say = say
        self._folder = folder
        self._keep_data = keep_data
        self._held = held
        self._processes: list[Process] = []
        self._watchdog: Watchdog | None = None
        self._listening: dict[str, str] = {}
        # For the socket of Redis: its path must be short, and `folder` may have a long path.
        self._directory = tempfile.TemporaryDirectory(prefix="winnow-", ignore_cleanup_errors=True)
        self.addresses: dict[str, str] = {}
        self.has_redis = False

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for_end(self) -> Process:
        """Blocks until one of the processes ends, and returns it."""
        ended: list[Process] = []
        event = threading.Event()

        def watch(process: Process) -> None:
            process.join()
            ended.append(process)
            event.set()

        for process in self._processes:
            threading.Thread(target=watch, args=(process,), daemon=True).start()
        while not event.wait(3600):  # on some platforms, a wait without a timeout cannot be interrupted
            pass
        return ended[0]

    @property
    def running(self) -> list[str]:
        """Names of the running processes, in the order of their start."""
        return [process.name for process in self._processes if process.running]

    @property
    def logs(self) -> Path:
        """The folder of the logs."""
        return self._folder.path if self._folder else Path(self._directory.name)

    def stop(self) -> None:
        """Stops all processes, the last started first; a second Ctrl-C kills them. Calling it again does nothing."""
        try:
            if self._processes:
                self._say("stopping; press Ctrl-C again to kill everything")
            while self._processes:
                self._processes[-1].stop()
                self._ended(self._processes.pop())
        finally:  # no process is left here, unless the loop was interrupted
            with self._held():
                for process in self._processes:
                    process.kill()
                self._processes.clear()
                if self._watchdog is not None:
                    self._watchdog.close()
                self._directory.cleanup()

    def _start(self) -> None:
        local = [
            part for part in PARTS if part == "gateway" or not self._elsewhere(part, f"GATEWAY_{part.upper()}_TARGET")
        ]
        check_addresses(
            {
                name: address
                for part in local
                for suffix in ("LISTEN", "METRICS_LISTEN", "HEALTH_LISTEN", "HTTP_LISTEN")
                if (address := self._settings.get(name := f"{part.upper()}_{suffix}"))
            }
        )
        with self._held():
            self._watchdog = Watchdog([self._folder.lock] if self._folder else [])
        redis_url = self._start_redis()
        targets = {"GATEWAY_REDIS_URL": redis_url} if redis_url else {}
        workers = [self._launch(part) for part in local if part != "gateway"]
        # Workers listen before they load, and the gateway waits for them. So a wrong setting fails immediately.
        self._until(lambda: all(worker.name in self._listening for worker in workers))
        for worker in workers:
            targets[f"GATEWAY_{worker.name.upper()}_TARGET"] = self._listening[worker.name]
        loading = [*workers, self._launch("gateway", targets)]
        self._until(lambda: self._all_ready(loading), loading)

    def _elsewhere(self, part: str, setting: str) -> bool:
        if not self._given.get(setting):
            return False
        self._say(f"{part:<9} not started: {setting} is set")
        return True

    def _start_redis(self) -> str | None:
        given = [name for name in ("REDIS", "CACHE", "INDEX") if self._given.get(f"GATEWAY_{name}_URL")]
        if "REDIS" in given or len(given) == 2:
            if self._keep_data:
                raise StartError("there is nothing to keep here: GATEWAY_*_URL names another Redis")
            self._elsewhere("redis", f"GATEWAY_{given[-1]}_URL")
            return None
        server = find_redis_server()
        if server is None:
            if self._keep_data:
                raise StartError(f"keeping data requires Redis {NEEDED} or later, which is not installed")
            self._say(f"redis     version {NEEDED} or later is not installed: no cache, inline documents only")
            return None
        data = self.logs / "redis" if self._keep_data else None
        if data is not None:
            data.mkdir(exist_ok=True)
        socket = Path(self._directory.name) / "redis.sock"
        process = self._spawn("redis", [server, *redis_arguments(socket, data)], {})
        self._until(lambda: process.find("Ready to accept connections"), [process])
        self.has_redis = True
        self._say(f"redis     {server.name} on a private socket")
        return f"unix://{socket}"

    def _launch(self, part: str, targets: Mapping[str, str] | None = None) -> Process:
        own = {name: value for name, value in self._settings.items() if name.startswith(f"{part.upper()}_")}
        # An empty target counts as unset.
        own = {name: value for name, value in own.items() if value or name not in (targets or {})}
        environment = {"PYTHONPATH": str(ROOT), **(targets or {}), **own, **self._others}
        return self._spawn(part, python_module(_MODULES[part]), environment)

    def _spawn(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Process:
        assert self._watchdog is not None
        with self._held():
            process = Process(
                name, command, environment, self.logs / f"{name}.log", self._inherited, self._watchdog.watch
            )
            self._processes.append(process)
        return process

    def _ended(self, process: Process) -> None:
        if self._watchdog is not None:
            self._watchdog.forget(process.pid)

    def _all_ready(self, loading: list[Process]) -> bool:
        """Removes processes that are serving from `loading`, in order, and prints their addresses."""
        while loading and loading[0].find(r"\bserving winnow\."):
            process = loading.pop(0)
            line = f"{process.name:<9} {self._listening[process.name]}"
            self.addresses[process.name] = self._listening[process.name]
            if metrics := self._listening.get(f"{process.name} metrics"):
                self.addresses[f"{process.name} metrics"] = metrics
                line += f", metrics on http://{metrics}/metrics"
            if http := self._listening.get(f"{process.name} http"):
                self.addresses[f"{process.name} http"] = http
                line += f", HTTP on {self.scheme}://{http}"
            self._say(line)
        return not loading

    @property
    def scheme(self) -> str:
        """The scheme of the gateway's HTTP address."""
        return "https" if self._settings.get("GATEWAY_TLS_CERT") else "http"

    def _read_addresses(self) -> None:
        """Records the addresses in the logs, before these lines are dropped from memory."""
        for process in self._processes:
            for key, said in (
                (process.name, "listening"),
                (f"{process.name} metrics", "metrics"),
                (f"{process.name} http", "http"),
            ):
                if key not in self._listening and (match := process.find(rf"\b{said} on ([^\s\"',}}]+:\d+)")):
                    self._listening[key] = reachable(match.group(1))

    def _until(self, fact: Callable[[], object], loading: Sequence[Process] = ()) -> None:
        """Waits for a condition and prints what is `loading`. Raises StartError if a process ends or logs nothing."""
        started = said = time.monotonic()
        silent_since, last_lines = started, ""
        while True:
            self._read_addresses()
            if fact():
                return
            for process in self._processes:
                if not process.running:
                    raise process.not_started()
            time.sleep(0.05)
            now = time.monotonic()
            lines = "".join(process.last_line for process in self._processes)
            if lines != last_lines:
                silent_since, last_lines = now, lines
            elif now - silent_since > _SILENCE_SECONDS:
                raise StartError(f"no log lines for {_SILENCE_SECONDS:.0f} s; the logs are in {self.logs}")
            if now - said > _PROGRESS_SECONDS:
                said = now
                for process in loading[:-1] or loading:  # the last one is the gateway, which waits for the workers
                    self._say(f"{process.name:<9} loading for {now - started:.0f} s: {process.last_line[:160]}")
