"""Everything on one machine: Redis, both workers, the gateway."""

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.process import Process, StartError, python_module
from deploy.local.redis import NEEDED, find_redis_server, redis_arguments

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the parts listen on loopback; 0 lets the system choose."""

    gateway: int = 50050
    embed: int = 50051
    rerank: int = 50052
    gateway_metrics: int = 9090
    embed_metrics: int = 9091
    rerank_metrics: int = 9092


FREE_PORTS = Ports(0, 0, 0, 0, 0, 0)


class Stack:
    """Starts the parts in order, knows their addresses, stops them in the opposite order.

    A context manager: whatever started is stopped on the way out, also on Ctrl-C and where a later part fails.
    """

    def __init__(
        self,
        ports: Ports = FREE_PORTS,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ports = ports
        self._environment = dict(environment or {})
        self._say = say
        self._processes: list[Process] = []
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
        """Block until one of the processes ends, and return it."""
        ended: list[Process] = []
        event = threading.Event()

        def watch(process: Process) -> None:
            process.join()
            ended.append(process)
            event.set()

        for process in self._processes:
            threading.Thread(target=watch, args=(process,), daemon=True).start()
        while not event.wait(3600):  # a bounded wait: an endless one cannot be interrupted on every platform
            pass
        return ended[0]

    @property
    def running(self) -> list[str]:
        """Names of the processes that live, in the order of their start."""
        return [process.name for process in self._processes if process.running]

    def stop(self) -> None:
        """Stop what runs, the last started first. Calling it again does nothing."""
        while self._processes:
            self._processes.pop().stop()
        self._directory.cleanup()

    def _start(self) -> None:
        redis_url = self._start_redis()
        ports = self._ports
        embed = self._launch("embed", "services.embed", ports.embed, ports.embed_metrics)
        rerank = self._launch("rerank", "services.rerank", ports.rerank, ports.rerank_metrics)
        self._ready("embed", embed, "winnow.embed.v1.EmbedService")
        self._ready("rerank", rerank, "winnow.rerank.v1.RerankService")
        targets = {"GATEWAY_EMBED_TARGET": self.addresses["embed"], "GATEWAY_RERANK_TARGET": self.addresses["rerank"]}
        if redis_url:
            targets["GATEWAY_REDIS_URL"] = redis_url
        gateway = self._launch("gateway", "gateway", ports.gateway, ports.gateway_metrics, targets)
        self._ready("gateway", gateway, "winnow.retrieval.v1.RetrievalService")

    def _start_redis(self) -> str | None:
        server = find_redis_server()
        if server is None:
            self._say(f"redis     none of version {NEEDED} or later here: no cache, inline documents only")
            return None
        directory = Path(self._directory.name)
        socket = directory / "redis.sock"
        process = Process("redis", [server, *redis_arguments(socket, directory)], {}, directory / "redis.log")
        self._processes.append(process)
        process.wait_for("Ready to accept connections")
        self.has_redis = True
        self._say(f"redis     {server.name} on a private socket")
        return f"unix://{socket}"

    def _launch(
        self, name: str, module: str, port: int, metrics_port: int, settings: Mapping[str, str] | None = None
    ) -> Process:
        prefix = name.upper()
        environment = {
            "PYTHONPATH": str(ROOT),
            f"{prefix}_LISTEN": f"127.0.0.1:{port}",
            f"{prefix}_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
            **(settings or {}),
            **{key: value for key, value in self._environment.items() if key.startswith((prefix, "OTEL_"))},
        }
        process = Process(name, python_module(module), environment, Path(self._directory.name) / f"{name}.log")
        self._processes.append(process)
        return process

    def _ready(self, name: str, process: Process, service: str) -> None:
        self.addresses[name] = process.address()
        self.addresses[f"{name} metrics"] = process.metrics_address()
        _wait_until_serving(name, process, self.addresses[name], service)
        self._say(f"{name:<9} {self.addresses[name]}")


def _wait_until_serving(name: str, process: Process, address: str, service: str, timeout: float = 600.0) -> None:
    """Follow the health service until it says SERVING. A large model takes minutes to load."""
    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=service), timeout=timeout
        )
        try:
            for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return
        except grpc.RpcError as error:
            raise StartError(f"{name} did not become ready: {error.code().name}. {process.tail()}") from None
    raise StartError(f"{name} did not become ready. {process.tail()}")
