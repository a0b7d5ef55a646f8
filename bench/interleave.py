"""Times several subjects side by side, so that whatever else the machine does falls on all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median

Run = Callable[[], object]


def interleave(runs: Mapping[str, Run], repeats: int, on_run: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each run: A B C, then B C A, then C A B, … `repeats` rounds in all.

    The order turns so that no subject always comes after the same neighbour. `on_run` hears who is next.
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
    """`work` per second: the median, and (least, greatest)."""
    return work / median(seconds), (work / max(seconds), work / min(seconds))
