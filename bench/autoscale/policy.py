"""The horizontal autoscaler's arithmetic, with the parameters of the manifests.

Source: the algorithm and the scaling policies of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2); KEDA hands its
queries to one as an external metric.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMPONENTS = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "components"
SYNC_S = 15
_TOLERANCE = 0.1
_NATIVE = {"winnow_queue_seconds": "queue", "winnow_utilisation": "utilisation"}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `value` pods, or per cent of them, in `period_s`."""

    kind: str
    value: int
    period_s: int

    def pods(self, replicas: int) -> int:
        """How many of `replicas`."""
        return self.value if self.kind == "Pods" else math.ceil(replicas * self.value / 100)


@dataclass(frozen=True, slots=True)
class Policy:
    """One autoscaler: aims at a target of each metric for each replica, and takes the metric that asks for most."""

    name: str
    targets: dict[str, float]
    """By the metric's name: "queue" or "utilisation" in the manifests."""
    least: int
    most: int
    up: tuple[Limit, ...]
    up_window_s: int
    down: tuple[Limit, ...]
    down_window_s: int


def from_manifest(kind: str, role: str = "embed") -> Policy:
    """The policy in components/`kind` ("keda" or "hpa")."""
    spec = yaml.safe_load((COMPONENTS / kind / f"{role}.yaml").read_text())["spec"]
    if kind == "keda":
        targets = {trigger["name"]: float(trigger["metadata"]["threshold"]) for trigger in spec["triggers"]}
        least, most = spec["minReplicaCount"], spec["maxReplicaCount"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    else:
        targets = {
            _NATIVE[metric["pods"]["metric"]["name"]]: _quantity(metric["pods"]["target"]["averageValue"])
            for metric in spec["metrics"]
        }
        least, most, behavior = spec["minReplicas"], spec["maxReplicas"], spec["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    return Policy(
        kind, targets, least, most,
        _limits(up), up["stabilizationWindowSeconds"], _limits(down), down["stabilizationWindowSeconds"],
    )  # fmt: skip


def _limits(direction: dict[str, Any]) -> tuple[Limit, ...]:
    return tuple(Limit(p["type"], p["value"], p["periodSeconds"]) for p in direction["policies"])


def _quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _wanted(replicas: int, total: float, target: float) -> int:
    ratio = total / (replicas * target)
    return replicas if abs(ratio - 1) <= _TOLERANCE else math.ceil(total / target)


@dataclass(slots=True)
class Autoscaler:
    """State of one; ask `decide` every SYNC_S seconds."""

    policy: Policy
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now: float, replicas: int, totals: dict[str, float]) -> int:
        """The number of replicas from now on. `totals`: each metric, summed over the pool."""
        policy = self.policy
        wanted = max(_wanted(replicas, totals[name], target) for name, target in policy.targets.items())
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - max(policy.up_window_s, policy.down_window_s):
            self._wanted.popleft()
        least_lately = min(w for at, w in self._wanted if at >= now - policy.up_window_s)
        most_lately = max(w for at, w in self._wanted if at >= now - policy.down_window_s)
        stable = max(least_lately, min(replicas, most_lately))
        if stable > replicas:
            stable = min(stable, max(self._before(now, limit, 1, replicas) for limit in policy.up))
        elif stable < replicas:
            stable = max(stable, min(self._before(now, limit, -1, replicas) for limit in policy.down))
        stable = min(policy.most, max(policy.least, stable))
        if stable != replicas:
            self._changes.append((now, stable - replicas))
        return stable

    def _before(self, now: float, limit: Limit, sign: int, replicas: int) -> int:
        """How far a limit lets the number go, counted from what it was a period ago."""
        moved = sum(change for at, change in self._changes if at > now - limit.period_s and change * sign > 0)
        start = replicas - moved
        return start + sign * limit.pods(start)
