"""The algorithm of the horizontal autoscaler, with the parameters of the manifests.

It follows the algorithm and the scaling policies of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2). KEDA passes
its queries to one as external metrics.
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
    """A limit of `value` pods, or percent of the pods, per `period_s`."""

    kind: str
    value: int
    period_s: int

    def pods(self, replicas: int) -> int:
        """The limit in pods, for a pool of `replicas`."""
        return self.value if self.kind == "Pods" else math.ceil(replicas * self.value / 100)


@dataclass(frozen=True, slots=True)
class Policy:
    """One autoscaler. Each metric has a target per replica; the metric that requests the most replicas wins."""

    name: str
    targets: dict[str, float]
    """By name of the metric: "queue" or "utilisation" in the manifests."""
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
    """State of an autoscaler. Call `decide` every SYNC_S seconds."""

    policy: Policy
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now: float, replicas: int, totals: dict[str, float]) -> int:
        """The new number of replicas. `totals`: each metric, summed over the pool."""
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
        """The number of replicas that a limit allows, relative to the number one period ago."""
        moved = sum(change for at, change in self._changes if at > now - limit.period_s and change * sign > 0)
        start = replicas - moved
        return start + sign * limit.pods(start)
