"""Simulates a day of traffic with the autoscalers of the manifests: `python -m bench autoscale`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.autoscale import capacity
from bench.autoscale.curve import CURVES, ServiceCurve, measure
from bench.autoscale.policy import Policy, from_manifest
from bench.autoscale.simulate import Day, simulate
from bench.autoscale.traffic import Traffic, day


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--curve", choices=sorted(CURVES), default="0.6b-h100", help="estimated GPU and model")
    parser.add_argument("--measure", metavar="FOLDER", help="measure the curve of this model on this machine instead")
    parser.add_argument("--node-seconds", type=float, default=0.0, help="time to get a node with a GPU (default 0)")
    parser.add_argument("--peak", type=float, help="requests per second at the peak (default: for 12 replicas)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot (PNG or SVG)")
    parser.add_argument("--capacity", action="store_true", help="print the GPUs by requests per second, and exit")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Simulates, print, plot."""
    if arguments.capacity:
        print(capacity.table(from_manifest("keda").targets["utilisation"]))
        return 0
    curve = measure(arguments.measure) if arguments.measure else CURVES[arguments.curve]
    curve = replace(curve, load_s=curve.load_s + arguments.node_seconds)
    traffic = day(arguments.peak or 12 * curve.capacity / 100)
    days = compare(curve, traffic)
    if arguments.json:
        for found in days:
            print(json.dumps(facts(curve, found)))
    else:
        Console().print(table(curve, traffic, days))
    if arguments.plot:
        from bench.autoscale.plot import plot

        plot(arguments.plot, curve, traffic, days)
    return 0


def compare(curve: ServiceCurve, traffic: Traffic) -> list[Day]:
    """The autoscalers of the manifests, and three that differ from them only in their metrics."""
    keda, native = from_manifest("keda"), from_manifest("hpa")
    queue_alone = {"queue": keda.targets["queue"]}
    policies = [
        replace(keda, name="KEDA: " + _said(keda)),
        replace(native, name="HPA: " + _said(native)),
        replace(keda, name="the queue alone", targets=queue_alone),
        replace(keda, name="GPU utilisation 80 %", targets={"gpu": 0.8}),
        replace(keda, name="CPU utilisation 70 %", targets={"cpu": 0.7}),
    ]
    return [simulate(curve, traffic, policy) for policy in policies]


def _said(policy: Policy) -> str:
    units = {"queue": "{:g} s queued", "utilisation": "{:.0%} of its speed"}
    return ", ".join(units[name].format(target) for name, target in policy.targets.items())


def facts(curve: ServiceCurve, found: Day) -> dict[str, object]:
    """One line of `--json`."""
    return {
        "bench": "autoscale", "case": curve.name, "measured_curve": curve.measured, "subject": found.name,
        "p50_ms": round(1000 * found.p50_s, 1), "p99_ms": round(1000 * found.p99_s, 1), "shed": round(found.shed, 6),
        "gpu_hours": round(found.gpu_hours, 1), "most_replicas": found.most, "bulk_hours": round(found.bulk_hours, 2),
    }  # fmt: skip


def table(curve: ServiceCurve, traffic: Traffic, days: list[Day]) -> Table:
    """The table for the terminal."""
    kind = "measured" if curve.measured else "on paper"
    title = f"{curve.name} ({kind}), peak {traffic.rate.max():,.0f} requests/s of {traffic.request_tokens:g} tokens"
    found = Table(title=title)
    for name in ("scaled by", "p50 ms", "p99 ms", "shed", "GPU hours", "most replicas", "bulk job h"):
        found.add_column(name, justify="left" if name == "scaled by" else "right")
    for each in days:
        found.add_row(
            each.name, f"{1000 * each.p50_s:.0f}", f"{1000 * each.p99_s:.0f}", f"{100 * each.shed:.2f} %",
            f"{each.gpu_hours:.0f}", str(each.most), f"{each.bulk_hours:.1f}",
        )  # fmt: skip
    return found
