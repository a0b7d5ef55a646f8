"""What must hold of the manifests, one function each: it returns what is wrong, in words; nothing where all is well.

Several tie the manifests to the code: to its settings, its metrics, its timings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.deploy.manifests import Manifests
from tests.deploy.policies.availability import grace, spread_and_budget, successors_are_known
from tests.deploy.policies.monitoring import monitors_find_ports, traces_name_their_pod, watched_metrics_exist
from tests.deploy.policies.pods import (
    limits,
    no_service_links,
    no_tokens,
    pinned_images,
    probe_ports_speak_plaintext,
    probes,
    restricted,
)
from tests.deploy.policies.processes import module_of
from tests.deploy.policies.quantities import quantity
from tests.deploy.policies.scaling import one_owner_of_replicas, scaling_metrics_exist
from tests.deploy.policies.settings import known_settings, redis_fits, settings_are_valid, weights_are_as_set
from tests.deploy.policies.wiring import (
    code_edges,
    edges_are_open,
    listens_as_set,
    no_other_edges,
    services_reach_ports,
)

__all__ = [
    "POLICIES", "Policy", "code_edges", "edges_are_open", "grace", "known_settings", "limits", "listens_as_set",
    "module_of", "monitors_find_ports", "no_other_edges", "no_service_links", "no_tokens", "one_owner_of_replicas",
    "pinned_images", "probe_ports_speak_plaintext", "probes", "quantity", "redis_fits", "restricted",
    "scaling_metrics_exist", "services_reach_ports", "settings_are_valid", "spread_and_budget", "successors_are_known",
    "traces_name_their_pod", "watched_metrics_exist", "weights_are_as_set",
]  # fmt: skip

Policy = Callable[[Manifests], Iterator[str]]

POLICIES: tuple[Policy, ...] = (
    limits, probes, probe_ports_speak_plaintext, restricted, no_tokens, no_service_links, pinned_images,
    spread_and_budget, services_reach_ports, listens_as_set, grace, successors_are_known, known_settings,
    settings_are_valid, weights_are_as_set, redis_fits, one_owner_of_replicas, scaling_metrics_exist,
    watched_metrics_exist, monitors_find_ports, traces_name_their_pod, edges_are_open, no_other_edges,
)  # fmt: skip
