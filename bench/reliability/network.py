"""A network namespace behind a link that delays and loses packets, as `tc netem` would.

The link is a pair of TUN devices with a thread between them: netem is a module that many kernels lack, and this one
needs only root and /dev/net/tun. Nothing of it outlives this process: devices end with their descriptors, and the
namespace with a process in it that waits for the end of a pipe.
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

_TUN = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET = 1 << 16
_NET = "198.18"  # for tests of networks (RFC 2544)
_LOOK_S = 0.05


def unavailable() -> str:
    """What is missing here, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"network namespaces need {', '.join(missing)} (packages iproute2 and util-linux)"
    if not os.path.exists(_TUN):
        return f"the link needs {_TUN}"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespace can be made: {done.stderr.strip()}" if done.returncode else ""


class Namespace:
    """A network namespace until the block ends. `outside` and `inside` are the addresses of the link's two ends.

    The link passes everything on at once, until it is told otherwise. Raises OSError.
    """

    def __init__(self, seed: int = 1) -> None:
        third = os.getpid() % 250
        self.outside, self.inside = f"{_NET}.{third}.1", f"{_NET}.{third}.2"
        self._chance = random.Random(seed)
        self._delay_s, self._jitter_s, self._loss = 0.0, 0.0, 0.0
        self.passed = 0
        """Packets, in both directions."""
        self.lost = 0
        self._ended = threading.Event()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._pid = self._hold()
            outer, inner = (self._device(f"wn{os.getpid()}{end}") for end in "oi")
            _run("ip", "address", "add", f"{self.outside}/30", "dev", outer[1])
            _run("ip", "link", "set", outer[1], "up")
            _run("ip", "link", "set", inner[1], "netns", str(self._pid))
            within = self.command()
            _run(*within, "ip", "link", "set", "lo", "up")
            _run(*within, "ip", "address", "add", f"{self.inside}/30", "dev", inner[1])
            _run(*within, "ip", "link", "set", inner[1], "up")
            thread = threading.Thread(target=self._pass, args=(outer[0], inner[0]), name="link", daemon=True)
            self._stack.callback(thread.join)
            self._stack.callback(self._ended.set)
            thread.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def command(self) -> list[str]:
        """What stands before a command that is to run in the namespace. It is executed in the same process."""
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net"]

    def degrade(self, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0) -> None:
        """From now on a packet, in either direction, is late by `delay_s` ± `jitter_s`, or lost with chance `loss`."""
        self._delay_s, self._jitter_s, self._loss = delay_s, jitter_s, loss

    def _hold(self) -> int:
        """Id of a process in a new namespace, which ends with the block or with this process."""
        words = ["unshare", "--net", "sh", "-c", "echo made && exec cat"]
        process = self._stack.enter_context(
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        )  # fmt: skip
        assert process.stdout is not None
        if not process.stdout.readline():
            raise OSError("no network namespace can be made")
        return process.pid

    def _device(self, name: str) -> tuple[int, str]:
        descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        self._stack.callback(os.close, descriptor)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        return descriptor, name

    def _pass(self, outer: int, inner: int) -> None:
        """Passes packets on, those that are late when they are due."""
        other = {outer: inner, inner: outer}
        late: list[tuple[float, int, int, bytes]] = []
        while not self._ended.is_set():
            wait = min(_LOOK_S, max(0.0, late[0][0] - time.monotonic())) if late else _LOOK_S
            readable, _, _ = select.select(list(other), [], [], wait)
            now = time.monotonic()
            for end in readable:
                packet = os.read(end, _PACKET)
                if self._chance.random() < self._loss:
                    self.lost += 1
                    continue
                due = now + max(0.0, self._delay_s + self._chance.uniform(-1, 1) * self._jitter_s)
                heapq.heappush(late, (due, self.passed, other[end], packet))
                self.passed += 1
            while late and late[0][0] <= now:
                _, _, end, packet = heapq.heappop(late)
                os.write(end, packet)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
