"""A plot of the simulated day."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bench.autoscale.curve import ServiceCurve
from bench.autoscale.simulate import Day
from bench.autoscale.traffic import Traffic

_MINUTE = 60


def plot(file: Path, curve: ServiceCurve, traffic: Traffic, days: list[Day]) -> None:
    """Traffic, replicas and latency over the hours of the day."""
    figure, (above, middle, below) = plt.subplots(3, 1, sharex=True, figsize=(10, 9), layout="constrained")
    hours = np.arange(len(traffic.rate) // _MINUTE) / 60
    above.plot(hours, traffic.rate[::_MINUTE] / 1000, color="black")
    above.axvline(traffic.bulk_start_s / 3600, color="grey", linestyle=":", label="bulk job begins")
    above.set_ylabel("thousand requests/s")
    above.legend()
    above.set_title(f"{curve.name}, {'measured' if curve.measured else 'on paper'}, {curve.load_s:g} s to load")
    for found in reversed(days):  # the manifests' own come first, and lie on top
        middle.plot(
            hours,
            found.replicas[::_MINUTE],
            label=f"{found.name}: {found.gpu_hours:.0f} GPU hours, {100 * found.shed:.2f} % shed",
        )
        worst = found.latency_s.reshape(-1, _MINUTE).max(axis=1)
        below.plot(hours, 1000 * worst, linewidth=0.9)
    middle.set_ylabel("ready replicas")
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    below.set_ylabel("latency, worst of a minute, ms")
    below.set_yscale("log")
    below.set_xlabel("hour of the day")
    figure.savefig(file, dpi=110)
    plt.close(figure)
