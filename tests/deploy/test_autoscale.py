"""The autoscaler's arithmetic, and a simulated day that reads the manifests' own parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.autoscale import capacity
from bench.autoscale.curve import CURVES, fit, measure
from bench.autoscale.policy import COMPONENTS, SYNC_S, Autoscaler, Limit, Policy, from_manifest
from bench.autoscale.simulate import Day, simulate
from bench.autoscale.traffic import Traffic, day
from tests.deploy.manifests import ROOT
from tests.support import checkpoints

CURVE = CURVES["0.6b-h100"]
PLAIN = Policy("plain", {"queue": 1.0}, 1, 100, (Limit("Percent", 100, 60),), 0, (Limit("Pods", 2, 60),), 300)


def steady(load: float, seconds: int) -> Traffic:
    """Interactive traffic that fills `load` replicas."""
    return Traffic(np.full(seconds, load * CURVE.capacity / 100), 100.0, 0, 0.0, 0.0)


def test_parameters_come_from_the_manifests() -> None:
    spec = yaml.safe_load((COMPONENTS / "keda" / "embed.yaml").read_text())["spec"]
    policy = from_manifest("keda")
    assert policy.targets == {t["name"]: float(t["metadata"]["threshold"]) for t in spec["triggers"]}
    assert (policy.least, policy.most) == (spec["minReplicaCount"], spec["maxReplicaCount"])


@pytest.mark.parametrize("role", ["embed", "rerank"])
def test_both_components_scale_alike(role: str) -> None:
    assert replace(from_manifest("keda", role), name="") == replace(from_manifest("hpa", role), name="")


def test_no_change_within_a_tenth_of_the_target() -> None:
    assert Autoscaler(PLAIN).decide(0, 10, {"queue": 10.9}) == 10


def test_growth_is_held_to_its_policy() -> None:
    scaler = Autoscaler(PLAIN)
    assert scaler.decide(0, 4, {"queue": 50.0}) == 8
    assert scaler.decide(SYNC_S, 8, {"queue": 50.0}) == 8  # twice what it was a minute ago
    assert scaler.decide(61, 8, {"queue": 50.0}) == 16


def test_the_pool_shrinks_only_when_the_whole_window_asked_for_less() -> None:
    scaler = Autoscaler(PLAIN)
    assert scaler.decide(0, 10, {"queue": 10.0}) == 10
    assert scaler.decide(290, 10, {"queue": 1.0}) == 10
    assert scaler.decide(301, 10, {"queue": 1.0}) == 8  # two pods a minute


def test_the_metric_that_asks_for_most_wins() -> None:
    policy = replace(PLAIN, targets={"queue": 1.0, "utilisation": 0.5})
    assert Autoscaler(policy).decide(0, 4, {"queue": 0.1, "utilisation": 3.0}) == 6


def test_a_steady_load_settles_where_the_target_says() -> None:
    policy = from_manifest("keda")
    found = simulate(CURVE, steady(6.0, 3600), policy)
    assert found.replicas[-1] == pytest.approx(6.0 / policy.targets["utilisation"], abs=1)
    assert found.shed < 0.02


def test_a_curve_is_recovered_from_its_batches() -> None:
    tokens = [100, 400, 1600, 6400]
    found = fit("x", tokens, [CURVE.seconds(count) for count in tokens], 0.0)
    assert found.fixed_s == pytest.approx(CURVE.fixed_s)
    assert found.tokens_per_second == pytest.approx(CURVE.tokens_per_second)


@pytest.mark.timeout(180)  # loads torch and transformers
def test_a_model_is_measured_where_it_runs(tmp_path: Path) -> None:
    found = measure(str(checkpoints.save(tmp_path / "model", "tied")), "cpu", repeats=3)
    assert found.measured
    assert 0 < found.tokens_per_second < math.inf
    assert found.batch_tokens > 300  # 64 texts went into one batch


@pytest.fixture(scope="module")
def morning() -> dict[str, Day]:
    """From before the spike to after it, at a quarter of the day's size."""
    whole = day(3 * CURVE.capacity / 100)
    traffic = replace(whole, rate=whole.rate[33_000:36_600], bulk_tokens=0.0)
    keda = from_manifest("keda")
    targets = {
        "both": keda.targets,
        "queue": {"queue": keda.targets["queue"]},
        "gpu": {"gpu": 0.8},
        "cpu": {"cpu": 0.7},
    }
    return {name: simulate(CURVE, traffic, replace(keda, targets=target)) for name, target in targets.items()}


def test_a_spike_is_borne_with_less_than_a_hundredth_shed(morning: dict[str, Day]) -> None:
    assert morning["both"].shed < 0.01


def test_the_queue_alone_swings_and_sheds(morning: dict[str, Day]) -> None:
    changes = {name: np.count_nonzero(np.diff(found.replicas[:1200])) for name, found in morning.items()}
    assert changes["queue"] > changes["both"]  # before the spike, when the traffic hardly changes
    assert morning["queue"].shed > 5 * morning["both"].shed


def test_gpu_utilisation_takes_more_gpus_for_the_same_work(morning: dict[str, Day]) -> None:
    assert morning["gpu"].gpu_hours > 1.3 * morning["both"].gpu_hours


def test_cpu_utilisation_does_not_see_the_load(morning: dict[str, Day]) -> None:
    assert morning["cpu"].shed > 10 * max(morning["both"].shed, 1e-3)


def test_the_readme_holds_the_capacity_table_of_today() -> None:
    utilisation = from_manifest("keda").targets["utilisation"]
    assert capacity.table(utilisation) in (ROOT / "deploy" / "README.md").read_text()
    assert capacity.gpus(CURVE, 1_000_000, 100, utilisation) == math.ceil(1e8 / (utilisation * CURVE.capacity))


def test_a_plot_is_written(morning: dict[str, Day], tmp_path: Path) -> None:
    plot = pytest.importorskip("bench.autoscale.plot", reason="matplotlib is not installed").plot
    traffic = replace(day(3 * CURVE.capacity / 100), rate=np.ones(3_600))
    plot(tmp_path / "day.png", CURVE, traffic, list(morning.values()))
    assert (tmp_path / "day.png").stat().st_size > 10_000
