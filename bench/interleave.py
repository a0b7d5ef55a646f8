"""Times several subjects in turn, so that other load on the machine affects all of them equally."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Run = Callable[[], object]


def interleave(runs: Mapping[str, Run], repeats: int, on_run: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each run, in the order A B C, then B C A, then C A B, …, for `repeats` rounds.

    The order rotates so that a subject does not always start a round. `on_run` is called with the next subject.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            on_run(name)
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rate(work: float, seconds: list[float]) -> tuple[float, tuple[float, float]]:
    """`work` per second: the median, and (minimum, maximum)."""
    return work / median(seconds), (work / max(seconds), work / min(seconds))
