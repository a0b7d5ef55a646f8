"""Who gets a tokenizer's thread, in which order; what is refused, and what stops."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.engine.engine import EmbedEngine, RerankEngine
from services.engine.errors import DeadlineTooShort, Draining, Overloaded
from services.engine.text.ends import Pause
from services.engine.text.tokenizer import Tokenizer
from services.engine.text.tokenizing import Tokenizing
from services.engine.types import EmbedItem, EngineSettings, Ids, InputType, Priority, Truncation
from tests.unit.engine.conftest import LIMIT

LIMIT_CHARACTERS = 1000


class Work:
    """Requests whose pieces of work end when told to, and the order of what was begun."""

    def __init__(self, threads: int) -> None:
        self.tokenizing = Tokenizing(threads, LIMIT_CHARACTERS)
        self.log: list[str] = []
        self.gates: dict[str, threading.Semaphore] = {}
        self.begun = threading.Condition()

    def send(
        self,
        name: str,
        *,
        priority: Priority = Priority.INTERACTIVE,
        pieces: int = 1,
        characters: int = 10,
        late: float | None = None,
    ) -> asyncio.Task[str]:
        """`pieces` of work, each logged as it begins, each ended by `end(name)`."""
        gate = self.gates[name] = threading.Semaphore(0)

        def build(pause: Pause) -> str:
            for _ in range(pieces):
                pause()
                with self.begun:
                    self.log.append(name)
                    self.begun.notify_all()
                gate.acquire()
            return name

        return asyncio.ensure_future(
            self.tokenizing.run(build, characters=characters, priority=priority, deadline=late)
        )

    def end(self, name: str, pieces: int = 1) -> None:
        self.gates[name].release(pieces)

    async def until(self, count: int) -> None:
        """So many pieces have begun."""

        def wait() -> None:
            with self.begun:
                assert self.begun.wait_for(lambda: len(self.log) >= count, 30)

        await asyncio.to_thread(wait)


@contextmanager
def working(threads: int) -> Iterator[Work]:
    work = Work(threads)
    try:
        yield work
    finally:
        for gate in work.gates.values():
            gate.release(1000)
        work.tokenizing.close()


async def test_interactive_requests_are_begun_before_bulk_ones() -> None:
    with working(1) as work:
        tasks = [work.send("first")]
        await work.until(1)
        tasks += [work.send("bulk", priority=Priority.BULK), work.send("second"), work.send("third")]
        await asyncio.sleep(0)
        for name in ("first", "second", "third", "bulk"):
            work.end(name)
        assert await asyncio.gather(*tasks) == ["first", "bulk", "second", "third"]
        assert work.log == ["first", "second", "third", "bulk"]


async def test_a_bulk_request_gives_way_between_two_pieces() -> None:
    with working(1) as work:
        bulk = work.send("bulk", priority=Priority.BULK, pieces=3)
        await work.until(1)
        quick = [work.send("quick"), work.send("soon")]
        await asyncio.sleep(0)
        work.end("quick")
        work.end("soon")
        work.end("bulk")
        assert await asyncio.gather(*quick) == ["quick", "soon"]
        await work.until(4)
        assert work.log == ["bulk", "quick", "soon", "bulk"]
        work.end("bulk", 2)
        assert await bulk == "bulk"


@pytest.mark.parametrize("threads", [2, 3])
async def test_bulk_requests_never_hold_all_threads(threads: int) -> None:
    with working(threads) as work:
        bulk = [work.send(f"bulk {i}", priority=Priority.BULK) for i in range(threads + 2)]
        await work.until(threads - 1)
        quick = work.send("quick")
        await work.until(threads)
        assert work.log[-1] == "quick"
        work.end("quick")
        assert await quick == "quick"
        for i in range(threads + 2):
            work.end(f"bulk {i}")
        assert len(await asyncio.gather(*bulk)) == threads + 2


async def test_bulk_requests_have_their_turn_beside_an_endless_flood() -> None:
    with working(1) as work:
        flood = [work.send("flood 0")]
        await work.until(1)
        bulk = work.send("bulk", priority=Priority.BULK)
        flood += [work.send(f"flood {i}") for i in range(1, 30)]
        await asyncio.sleep(0)
        for name in work.gates:
            work.end(name)
        await asyncio.gather(bulk, *flood)
        assert work.log.index("bulk") <= 16


async def test_abandoned_work_is_never_begun_and_stops_between_two_pieces() -> None:
    with working(1) as work:
        running = work.send("running", pieces=100)
        await work.until(1)
        waiting = [work.send(f"waiting {i}") for i in range(5)]
        await asyncio.sleep(0)
        for task in [running, *waiting]:
            task.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
        last = work.send("last")
        await asyncio.sleep(0)
        work.end("running")
        work.end("last")
        assert await last == "last"
        assert work.log == ["running", "last"]


async def test_what_is_too_late_is_not_begun_and_stops_between_two_pieces() -> None:
    now = asyncio.get_running_loop().time()
    with working(1) as work:
        running = work.send("running", pieces=100, late=now + 0.2)
        await work.until(1)
        waiting = work.send("waiting", late=now)
        while asyncio.get_running_loop().time() < now + 0.2:  # noqa: ASYNC110 - until a time
            await asyncio.sleep(0)
        work.end("running")
        for task in (running, waiting):
            with pytest.raises(DeadlineTooShort):
                await task
        assert work.log == ["running"]


async def test_refused_before_any_work_when_too_much_waits() -> None:
    with working(1) as work:
        alone = work.send("alone", characters=5 * LIMIT_CHARACTERS)  # nothing else waits: any size will do
        await work.until(1)
        with pytest.raises(Overloaded) as full:
            await work.send("refused")
        assert full.value.retry_after_s > 0
        work.end("alone")
        await alone
        bulk = work.send("bulk", priority=Priority.BULK, characters=700)
        with pytest.raises(Overloaded):
            await work.send("more bulk", priority=Priority.BULK, characters=100)
        quick = work.send("quick", characters=300)
        await asyncio.sleep(0)
        assert not quick.done()
        bulk.cancel()  # what is abandoned weighs nothing
        await asyncio.gather(bulk, return_exceptions=True)
        other = work.send("other", characters=700)
        await asyncio.sleep(0)
        for name in work.gates:
            work.end(name)
        assert [await quick, await other] == ["quick", "other"]
        assert "refused" not in work.log


async def test_close_fails_what_waits_and_what_runs() -> None:
    with working(1) as work:
        tasks = [work.send("running", pieces=2)]
        await work.until(1)
        tasks += [work.send("waiting"), work.send("waiting too", priority=Priority.BULK)]
        await asyncio.sleep(0)
        work.end("running")
        work.tokenizing.close()
        for task in tasks:
            with pytest.raises(Draining):
                await task
        with pytest.raises(Draining):
            await work.send("late")
        assert work.log == ["running"]


async def test_what_fails_is_raised_and_leaves_the_thread_to_others() -> None:
    def fails(pause: Pause) -> str:
        raise ValueError("a bug")

    with working(1) as work:
        with pytest.raises(ValueError, match="a bug"):
            await work.tokenizing.run(fails, characters=1, priority=Priority.BULK, deadline=None)
        work_on = work.send("next", priority=Priority.BULK)
        await asyncio.sleep(0)
        work.end("next")
        assert await work_on == "next"


# The engines.

GIANT = "some words of a text " * 200_000  # 4 MiB


class Reads:
    """What is given to the tokenizer; held up while `gate` is closed, by texts over 2,000 characters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.gate, self.reading = threading.Event(), threading.Event()
        self.gate.set()
        encode = Tokenizer.encode

        def held(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
            self.texts += texts
            if sum(map(len, texts)) > 2000:
                self.reading.set()
                assert self.gate.wait(60)
            return encode(tokenizer, texts)

        monkeypatch.setattr(Tokenizer, "encode", held)

    def hold(self) -> None:
        self.gate.clear()
        self.reading.clear()
        self.texts.clear()


@pytest.fixture
async def engine(checkpoints: Callable[..., Path]) -> AsyncIterator[EmbedEngine]:
    made = EmbedEngine.load(
        EngineSettings(str(checkpoints()), max_tokens=LIMIT, queue_tokens=200_000, threads=1, tokenizer_threads=1)
    )
    made.start()
    yield made
    made.close()


async def test_a_neighbour_does_not_wait_for_abandoned_giants(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sixteen texts of 4 MiB that nobody wants any more, the neighbour sees the rest of one piece."""
    reads = Reads(monkeypatch)
    reads.hold()
    giants = [asyncio.ensure_future(engine.embed([GIANT] * 4)) for _ in range(4)]
    await asyncio.to_thread(reads.reading.wait, 60)
    for task in giants:
        task.cancel()
    neighbour = asyncio.ensure_future(engine.embed(["gravity is a force " * 150]))
    await asyncio.sleep(0)
    reads.gate.set()
    assert isinstance((await neighbour).items[0], EmbedItem)
    await asyncio.gather(*giants, return_exceptions=True)
    assert all(task.cancelled() for task in giants)
    assert len(reads.texts) == 2  # the piece that was under way, and the neighbour's text


async def test_a_short_text_is_answered_while_long_ones_are_read(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    reads.hold()
    giant = asyncio.ensure_future(engine.embed([GIANT], priority=Priority.BULK))
    await asyncio.to_thread(reads.reading.wait, 60)
    assert (await engine.embed(["gravity", "force"])).items
    assert not giant.done()
    reads.gate.set()
    (item,) = (await giant).items
    assert isinstance(item, EmbedItem)
    assert (item.tokens, item.truncated) == (LIMIT, True)


async def test_more_texts_than_the_queue_holds_are_refused_before_they_are_read(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    reads.hold()
    first = asyncio.ensure_future(engine.embed([GIANT] * 48))
    await asyncio.to_thread(reads.reading.wait, 60)
    begun = len(reads.texts)
    with pytest.raises(Overloaded):
        await engine.embed([GIANT])
    assert len(reads.texts) == begun
    reads.gate.set()
    assert len((await first).items) == 48


async def test_what_the_queue_refuses_is_not_read(engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    engine._throughput._fixed_s, engine._throughput._token_s = 0.0, 0.01  # as if this were a slow machine
    loop = asyncio.get_running_loop()
    release = threading.Event()
    engine._runner._launcher.submit(release.wait)
    calls = [asyncio.ensure_future(engine.embed(["gravity is a force"]))]
    while not engine.stats().inflight_tokens:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0)
    calls.append(asyncio.ensure_future(engine.embed([f"{i} gravity is a force " * 60 for i in range(10)])))
    while not engine.stats().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0)
    reads.texts.clear()
    for text in ("gravity", "gravity is a force " * 60, GIANT):
        for deadline in (None, loop.time() + 30):  # a minute of work waits
            with pytest.raises(Overloaded) as refused:
                await engine.embed([text], deadline=deadline)
            assert refused.value.retry_after_s > 0
    assert reads.texts == []
    release.set()
    assert [len((await call).items) for call in calls] == [1, 10]


async def test_what_is_being_read_counts_for_those_that_come_after_it(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    engine._throughput._fixed_s, engine._throughput._token_s = 0.0, 0.01
    reads.hold()
    first = asyncio.ensure_future(engine.embed(["gravity is a force " * 200] * 10))
    await asyncio.to_thread(reads.reading.wait, 60)
    begun = len(reads.texts)
    assert engine.stats().queued_tokens == 0
    with pytest.raises(Overloaded):
        await engine.embed(["gravity"])
    assert len(reads.texts) == begun
    reads.gate.set()
    assert len((await first).items) == 10


async def test_a_deadline_ends_the_reading(engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    reads.hold()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 0.5
    task = asyncio.ensure_future(engine.embed(["word " * 20_000] * 20, deadline=deadline))
    await asyncio.to_thread(reads.reading.wait, 60)
    while loop.time() < deadline:  # noqa: ASYNC110 - until a time
        await asyncio.sleep(0)
    reads.gate.set()
    with pytest.raises(DeadlineTooShort):
        await task
    assert len(reads.texts) <= 2


async def test_many_prompts_of_short_texts_are_not_read_on_the_event_loop(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instruction stands before each of them."""
    here = threading.get_ident()
    threads: set[int] = set()
    encode = Tokenizer.encode

    def noted(self: Tokenizer, texts: list[str]) -> list[Ids]:
        threads.add(threading.get_ident())
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    await engine.embed(["a"] * 200, input_type=InputType.QUERY, max_tokens=LIMIT)
    assert here not in threads


@pytest.mark.parametrize("threads", [1, 3])
async def test_there_are_as_many_threads_as_set(checkpoints: Callable[..., Path], threads: int) -> None:
    settings = EngineSettings(str(checkpoints()), max_tokens=LIMIT, threads=1)
    for kind in (EmbedEngine, RerankEngine):
        made = kind.load(replace(settings, tokenizer_threads=threads))
        assert made._tokenizing._threads._max_workers == threads
        made.close()


def test_a_few_texts_never_wait_for_the_librarys_own_threads(
    checkpoints: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One text at a time runs on the calling thread, several on threads that others may hold for seconds."""
    words = Tokenizer(checkpoints() / "tokenizer.json")
    batches: list[int] = []
    fast = words._fast

    class Counted:
        def encode_batch_fast(self, texts, **how):  # type: ignore[no-untyped-def]
            batches.append(len(texts))
            return fast.encode_batch_fast(texts, **how)

    monkeypatch.setattr(words, "_fast", Counted())
    words.encode(["short"] * 20)
    assert batches == [1] * 20
    batches.clear()
    words.encode(["word " * 100] * 20)
    assert batches == [20]
    batches.clear()
    words.encode(["a" * (1 << 20), "b"])
    assert batches == [1, 1]


async def test_truncation_error_counts_no_further_than_it_must(
    engine: EmbedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    (item,) = (await engine.embed([GIANT], truncation=Truncation.ERROR)).items
    assert not isinstance(item, EmbedItem)
    assert "exceed the limit of 300" in str(item.error)
    assert sum(map(len, reads.texts)) < 50_000
