"""A clock that is never waited for."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def virtual_time() -> Iterator[Callable[[], float]]:
    """The running loop's clock: it stands while there is something to run, and else jumps to the next timer."""
    loop = asyncio.get_running_loop()
    selector = loop._selector  # type: ignore[attr-defined]
    select, time, now = selector.select, loop.time, loop.time()

    def jump(timeout: float | None = None) -> object:
        nonlocal now
        ready = select(0 if timeout is not None else None)
        if not ready and timeout is not None:
            now += timeout
        return ready

    selector.select, loop.time = jump, lambda: now  # type: ignore[method-assign]
    try:
        yield lambda: now
    finally:
        selector.select, loop.time = select, time  # type: ignore[method-assign]
