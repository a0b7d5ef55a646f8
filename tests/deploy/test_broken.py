"""A manifest broken in each of the usual ways makes the check of that name fail. A check that cannot fail is none."""

from __future__ import annotations

from collections.abc import Callable

import jsonschema
import pytest

from tests.deploy import policies
from tests.deploy.manifests import Manifests, Object
from tests.deploy.policies import Policy
from tests.deploy.test_render import VERSIONS, check

Break = Callable[[Manifests], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    every = ("keda", "prometheus", "otlp", "tls", "redis-cluster", "gateway-api")
    return Manifests.compose(tmp_path_factory.mktemp("composed"), "gpu-0.6b", every)


def embed(m: Manifests) -> Object:
    spec: Object = m.get("Deployment", "winnow-embed")["spec"]["template"]["spec"]
    return spec


def container(m: Manifests) -> Object:
    first: Object = embed(m)["containers"][0]
    return first


def variable(m: Manifests, name: str) -> Object:
    found: Object = next(one for one in container(m)["env"] if one["name"] == name)
    return found


def settings(m: Manifests, role: str) -> Object:
    data: Object = m.get("ConfigMap", f"winnow-{role}")["data"]
    return data


def trigger(m: Manifests) -> Object:
    metadata: Object = m.get("ScaledObject", "winnow-embed")["spec"]["triggers"][0]["metadata"]
    return metadata


def policy_object(m: Manifests, name: str) -> Object:
    spec: Object = m.get("NetworkPolicy", name)["spec"]
    return spec


def rule(m: Manifests) -> Object:
    first: Object = m.get("PrometheusRule", "winnow")["spec"]["groups"][0]["rules"][0]
    return first


def edit(m: Manifests, role: str, old: str, new: str) -> None:
    data = settings(m, role)
    assert old in data["redis.conf"]
    data["redis.conf"] = data["redis.conf"].replace(old, new)


def native(metric: str) -> Object:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "winnow-embed"}
    spec = {"scaleTargetRef": target, "metrics": [{"type": "Pods", "pods": {"metric": {"name": metric}}}]}
    return {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "winnow-embed"}, "spec": spec}


# What breaks · the check that must notice · how.
BROKEN: dict[str, tuple[Policy, Break]] = {
    "no limits": (policies.limits, lambda m: container(m).pop("resources")),
    "no memory limit": (policies.limits, lambda m: container(m)["resources"]["limits"].pop("memory")),
    "request over limit": (policies.limits, lambda m: container(m)["resources"]["requests"].update(cpu="64")),
    "no startup probe": (policies.probes, lambda m: container(m).pop("startupProbe")),
    "probe of a port that is not there": (
        policies.probes,
        lambda m: container(m)["readinessProbe"]["grpc"].update(port=50099),
    ),
    "probe of the TLS port": (
        policies.probe_ports_speak_plaintext,
        lambda m: container(m)["livenessProbe"]["grpc"].update(port=50051),
    ),
    "liveness by readiness": (
        policies.probe_ports_speak_plaintext,
        lambda m: container(m)["livenessProbe"]["grpc"].update(service="winnow.embed.v1.EmbedService"),
    ),
    "root": (policies.restricted, lambda m: embed(m)["securityContext"].pop("runAsNonRoot")),
    "writable root": (policies.restricted, lambda m: container(m)["securityContext"].pop("readOnlyRootFilesystem")),
    "capability": (
        policies.restricted,
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["SYS_PTRACE"]),
    ),
    "token": (policies.no_tokens, lambda m: embed(m).pop("automountServiceAccountToken")),
    "service links": (policies.no_service_links, lambda m: embed(m).pop("enableServiceLinks")),
    "latest": (policies.pinned_images, lambda m: container(m).update(image="winnow-worker:latest")),
    "no tag": (policies.pinned_images, lambda m: container(m).update(image="registry:5000/winnow-worker")),
    "no budget": (
        policies.spread_and_budget,
        lambda m: m.objects.remove(m.get("PodDisruptionBudget", "winnow-embed")),
    ),
    "wrong selector": (
        policies.services_reach_ports,
        lambda m: m.get("Service", "winnow-embed")["spec"]["selector"].update({"app.kubernetes.io/component": "x"}),
    ),
    "wrong target port": (
        policies.services_reach_ports,
        lambda m: m.get("Service", "winnow-embed")["spec"]["ports"][0].update(targetPort="grcp"),
    ),
    "one address for a pool": (
        policies.services_reach_ports,
        lambda m: m.get("Service", "winnow-embed")["spec"].pop("clusterIP"),
    ),
    "listens elsewhere": (
        policies.listens_as_set,
        lambda m: settings(m, "embed").update(EMBED_LISTEN="[::]:50055"),
    ),
    "short grace": (policies.grace, lambda m: embed(m).update(terminationGracePeriodSeconds=30)),
    "long drain": (policies.grace, lambda m: settings(m, "embed").update(EMBED_DRAIN_SECONDS="90")),
    "gone too early": (
        policies.successors_are_known,
        lambda m: container(m)["lifecycle"]["preStop"]["sleep"].update(seconds=2),
    ),
    "default connection age": (
        policies.successors_are_known,
        lambda m: settings(m, "gateway").pop("GATEWAY_CONNECTION_AGE_SECONDS"),
    ),
    "typing error in a setting": (policies.known_settings, lambda m: settings(m, "embed").update(EMBED_MODLE="x")),
    "setting of another process": (
        policies.known_settings,
        lambda m: settings(m, "embed").update(RERANK_MODEL="x"),
    ),
    "impossible value": (
        policies.settings_are_valid,
        lambda m: settings(m, "gateway").update(GATEWAY_DRAIN_SECONDS="soon"),
    ),
    "weights elsewhere": (
        policies.weights_are_as_set,
        lambda m: settings(m, "embed").update(EMBED_MODEL="/model/qwen3-embedding-0.6b"),
    ),
    "writable weights": (
        policies.weights_are_as_set,
        lambda m: container(m)["volumeMounts"][0].update(readOnly=False),
    ),
    "hub not off": (
        policies.weights_are_as_set,
        lambda m: container(m)["env"].remove(variable(m, "HF_HUB_OFFLINE")),
    ),
    "cache larger than its container": (
        policies.redis_fits,
        lambda m: edit(m, "cache", "maxmemory 3gb", "maxmemory 4gb"),
    ),
    "index that evicts": (
        policies.redis_fits,
        lambda m: edit(m, "index", "noeviction", "allkeys-lfu"),
    ),
    "two owners of replicas": (
        policies.one_owner_of_replicas,
        lambda m: m.get("Deployment", "winnow-embed")["spec"].update(replicas=3),
    ),
    "metric nobody exports": (
        policies.scaling_metrics_exist,
        lambda m: trigger(m).update(query=trigger(m)["query"].replace("queue_seconds", "queued_seconds")),
    ),
    "metric of the other pool": (
        policies.scaling_metrics_exist,
        lambda m: trigger(m).update(query=trigger(m)["query"].replace("embed", "rerank")),
    ),
    "pods' metric that no rule makes": (
        policies.scaling_metrics_exist,
        lambda m: m.objects.append(native("winnow_utilization")),
    ),
    "alert on nothing": (
        policies.watched_metrics_exist,
        lambda m: rule(m).update(expr="rate(winnow_shedded_total[5m])"),
    ),
    "monitor of a port that is not there": (
        policies.monitors_find_ports,
        lambda m: m.get("ServiceMonitor", "winnow-embed")["spec"]["endpoints"][0].update(port="prometheus"),
    ),
    "traces without a pod": (
        policies.traces_name_their_pod,
        lambda m: variable(m, "OTEL_RESOURCE_ATTRIBUTES").update(value="service.namespace=x"),
    ),
    "traces of a pod that is resolved too late": (
        policies.traces_name_their_pod,
        lambda m: container(m)["env"].append(container(m)["env"].pop(-3)),
    ),
    "no way to the collector": (
        policies.edges_are_open,
        lambda m: policy_object(m, "winnow-embed-otlp")["egress"].pop(),
    ),
    "collector on another port": (
        policies.edges_are_open,
        lambda m: settings(m, "embed").update(OTEL_EXPORTER_OTLP_ENDPOINT="http://otel-collector.observability.svc:4318"),
    ),
    "missing way out": (policies.edges_are_open, lambda m: policy_object(m, "winnow-gateway")["egress"].pop()),
    "missing way in": (policies.edges_are_open, lambda m: policy_object(m, "winnow-embed")["ingress"].pop()),
    "wrong port in a policy": (
        policies.edges_are_open,
        lambda m: policy_object(m, "winnow-rerank")["ingress"][0]["ports"][0].update(port=50051),
    ),
    "no DNS": (policies.edges_are_open, lambda m: m.objects.remove(m.get("NetworkPolicy", "dns"))),
    "target that no policy knows": (
        policies.edges_are_open,
        lambda m: settings(m, "gateway").update(GATEWAY_EMBED_TARGET="dns:///winnow-gateway:50050"),
    ),
    "edge that nothing uses": (
        policies.no_other_edges,
        lambda m: policy_object(m, "winnow-gateway")["egress"][0]["to"].append({"podSelector": {}}),
    ),
    "no default deny": (policies.no_other_edges, lambda m: m.objects.remove(m.get("NetworkPolicy", "default-deny"))),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_the_check_notices(sound: Manifests, what: str) -> None:
    policy, breaks = BROKEN[what]
    assert list(policy(sound)) == []
    broken = sound.copy()
    breaks(broken)
    assert list(policy(broken)) != []


def test_every_policy_has_its_broken_manifest() -> None:
    assert {policy for policy, _ in BROKEN.values()} == set(policies.POLICIES)


TYPING_ERRORS: dict[str, tuple[str, str, Break]] = {
    "Deployment": ("Deployment", "winnow-embed", lambda m: container(m).update(readinesProbe={})),
    "Service": ("Service", "winnow-embed", lambda m: m.get("Service", "winnow-embed")["spec"].update(clusterip="None")),
    "NetworkPolicy": (
        "NetworkPolicy",
        "winnow-embed",
        lambda m: policy_object(m, "winnow-embed").update(engress=[]),
    ),
    "ScaledObject": (
        "ScaledObject",
        "winnow-embed",
        lambda m: m.get("ScaledObject", "winnow-embed")["spec"].update(maxReplicas=3),
    ),
    "ServiceMonitor": (
        "ServiceMonitor",
        "winnow-embed",
        lambda m: m.get("ServiceMonitor", "winnow-embed")["spec"].update(endpoint=[]),
    ),
    "PrometheusRule": (
        "PrometheusRule",
        "winnow",
        lambda m: rule(m).update(severity="page"),
    ),
    "GRPCRoute": (
        "GRPCRoute",
        "winnow-gateway",
        lambda m: m.get("GRPCRoute", "winnow-gateway")["spec"]["rules"][0].update(backends=[]),
    ),
    "HTTPRoute": (
        "HTTPRoute",
        "winnow-gateway-http",
        lambda m: m.get("HTTPRoute", "winnow-gateway-http")["spec"]["rules"][0]["matches"][0]["path"].update(kind="x"),
    ),
}


@pytest.mark.parametrize("kind", TYPING_ERRORS)
def test_schemas_notice_a_typing_error(sound: Manifests, kind: str) -> None:
    kind, name, breaks = TYPING_ERRORS[kind]
    broken = sound.copy()
    breaks(broken)
    for version in VERSIONS:
        check(sound.get(kind, name), version)
        with pytest.raises(jsonschema.ValidationError):
            check(broken.get(kind, name), version)
