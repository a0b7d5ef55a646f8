"""A plot of `bench index`: search time and memory per document as a collection grows."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from bench.report import Row


def plot(file: Path, rows: Sequence[Row]) -> None:
    """Writes the plot. The dashed line is logarithmic growth through the first and the second size."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 7), layout="constrained")
    for unit, style in (("ms p50", "o-"), ("ms p99", "^-")):
        above.plot(*_growth(rows, unit), style, label=unit.removeprefix("ms "))
    sizes, median = _growth(rows, "ms p50")
    if len(sizes) > 1:
        slope = (median[1] - median[0]) / np.log(sizes[1] / sizes[0])
        above.plot(
            sizes, median[0] + slope * np.log(sizes / sizes[0]), "k--", linewidth=0.9, label="p50 if logarithmic"
        )
    above.set(xscale="log", ylim=(0, None), ylabel="a search, ms")
    above.legend()
    below.plot(*_growth(rows, "bytes a document"), "s-")
    below.set(xscale="log", ylim=(0, None), ylabel="memory, bytes a document", xlabel="documents")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(file)
    plt.close(figure)


def _growth(rows: Sequence[Row], unit: str) -> tuple[np.ndarray, np.ndarray]:
    found = sorted((int(row.case), row.value) for row in rows if row.unit == unit)
    return np.array([size for size, _ in found]), np.array([value for _, value in found])
