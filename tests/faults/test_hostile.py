"""Strangers at the ports of a real gateway and a real worker: nothing breaks, nothing stays, good calls go on.

HOSTILE_REQUESTS=50000 makes it as long as that many requests.
"""

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from deploy.local.stack import FREE_PORTS, Stack
from tests.support import hostile
from tests.support.serving import failure, rich_status
from tests.support.waiting import until
from winnow.embed.v1 import embed_pb2, embed_pb2_grpc

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "3000"))
PARTS = ("embed", "rerank", "gateway")
BESIEGED = ("embed", "gateway")  # by attacks below gRPC, which call EmbedService
# In each of two equal rounds. Half of the requests are fuzzed; an attack of the other kind makes some 25.
FUZZED = REQUESTS // 2 // 2 // len(PARTS)
ATTACKS = max(1, REQUESTS // 2 // 2 // 25 // len(BESIEGED) // len(hostile.RAW))
AT_ONCE = 8
OWN = 2  # connections of the good calls, and of the gateway to a worker
POOLED = 64  # connections of the gateway to Redis
POOLED_THREADS = 8  # grpc's, and those of the event loop: they vary with the load
NOISE = 16 << 20  # of malloc, beside the tenth of a small process
ESTABLISHED = "01"

# What a server of this project says of a request. The rest of grpc's codes would be faults.
DOCUMENTED = {
    "OK", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED",
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED",
}  # fmt: skip
# What HTTP/2 says, and what grpc itself says of headers and frames that are malformed: no handler has run.
BELOW = re.compile(
    r"reset \d+|goaway \d+|closed|silence|left open|never read"
    r"|INTERNAL: (Failed parsing HTTP/2 |Error parsing '[^']+' metadata|Metadata keys cannot be zero length"
    r"|Compression bit set but no encoding configured|Illegal header key).*"
)


class Watched:
    """A process as the kernel sees it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def _status(self, name: str) -> int:
        [line] = [line for line in (self._folder / "status").read_text().splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1])

    @property
    def memory(self) -> int:
        return self._status("VmRSS") << 10

    @property
    def peak(self) -> int:
        return self._status("VmHWM") << 10

    def forget_peak(self) -> None:
        (self._folder / "clear_refs").write_text("5")

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        return len(list((self._folder / "fd").iterdir()))


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    with Stack(FREE_PORTS) as stack:
        yield stack


def watched(stack: Stack) -> dict[str, Watched]:
    return {process.name: Watched(process.pid) for process in stack._processes if process.name in PARTS}


def calls_in_progress(stack: Stack, part: str) -> float:
    with urlopen(f"http://{stack.addresses[f'{part} metrics']}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("rpc_server_active"))


def connections(stack: Stack, part: str) -> int:
    """Open connections to its port."""
    port = f":{int(stack.addresses[part].rpartition(':')[2]):04X}"
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return sum(local.endswith(port) and state == ESTABLISHED for _, local, _, state, *_ in lines[1:])


async def besieged(stack: Stack, seed: int) -> Counter[str]:
    """One round of all attacks on all ports, always the same for a seed."""
    rng = random.Random(seed)
    attacks = [(part, attack, rng.randrange(1 << 32)) for part in BESIEGED for attack in hostile.RAW * ATTACKS]
    rng.shuffle(attacks)
    todo, seen = iter(attacks), Counter[str]()

    async def stranger() -> None:
        for part, attack, own in todo:
            answered = await attack(stack.addresses[part], random.Random(own))
            seen.update(answered)
            for answer in answered:
                assert answer in DOCUMENTED or BELOW.fullmatch(answer), (part, attack.__name__, answer)

    fuzzing = [hostile.fuzz(part, stack.addresses[part], random.Random(seed), FUZZED) for part in PARTS]
    for answered in await asyncio.gather(*fuzzing, *(stranger() for _ in range(AT_ONCE))):
        seen.update(answered or {})
    return seen


async def good_calls(stack: Stack, stop: asyncio.Event) -> int:
    """Calls as any client makes them, meanwhile: each is answered, exactly as before."""
    done = 0
    async with grpc.aio.insecure_channel(stack.addresses["gateway"]) as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        request = embed_pb2.EmbedRequest(texts=["a good text", "another"])
        expected = [result.embedding for result in (await stub.Embed(request, timeout=30)).results]
        while not stop.is_set():
            answer = await stub.Embed(request, timeout=30)
            assert [result.embedding for result in answer.results] == expected
            done += 1
    return done


@pytest.mark.timeout(60 + REQUESTS // 10)
async def test_nothing_breaks_and_nothing_stays(running: Stack) -> None:
    processes = watched(running)
    stop = asyncio.Event()
    beside = asyncio.create_task(good_calls(running, stop))
    known = {part: connections(running, part) + OWN for part in PARTS}
    after: list[dict[str, tuple[int, int, int]]] = []
    for _ in range(2):
        seen = await besieged(running, seed=15)
        assert set(seen) >= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
        assert not [answer for answer in seen if answer not in DOCUMENTED and not BELOW.fullmatch(answer)]
        for part, process in processes.items():
            await until(partial(lambda part: connections(running, part) <= known[part], part))
            await until(partial(lambda part: calls_in_progress(running, part) == 0, part))
            if after:
                memory, threads, descriptors = after[0][part]
                await until(partial(lambda process, memory: process.memory <= 1.1 * memory + NOISE, process, memory))
                assert process.threads <= threads + POOLED_THREADS
                assert process.descriptors <= descriptors + POOLED
        after.append({part: (each.memory, each.threads, each.descriptors) for part, each in processes.items()})
    stop.set()
    assert await beside > 0
    assert running.running == ["redis", *PARTS]
    for part in PARTS:  # of calls, too, whose callers have hung up
        assert "incident" not in (running.logs / f"{part}.log").read_text()


BOMBS = {
    "texts": (hostile.EMBED, b"\n\0" * 30_000_000, "texts"),
    "unknown": (hostile.EMBED, b"\x98\x06\x00" * 20_000_000, "winnow.embed.v1.EmbedRequest"),
    "groups": (hostile.EMBED, b"\x9b\x06" * 30_000_000, "winnow.embed.v1.EmbedRequest"),
    "documents": (
        "/winnow.retrieval.v1.RetrievalService/Search",
        b"\x1a\x80\xc7\xcd\x1c" + b"\n\0" * 30_000_000,
        "documents.documents",
    ),
    "ids": ("/winnow.retrieval.v1.RetrievalService/GetDocuments", b"\x12\0" * 30_000_000, "ids"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_costs_its_bytes_and_nothing_stays(running: Stack, bomb: str) -> None:
    method, data, field = BOMBS[bomb]
    gateway = watched(running)["gateway"]
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(running.addresses["gateway"], options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method, None, None)
        before = gateway.memory
        gateway.forget_peak()
        error = await failure(call(data, timeout=30))
    seen = rich_status(error)
    assert (seen.code, seen.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert gateway.peak - before < 200 << 20
    await until(lambda: gateway.memory < 1.1 * before)
