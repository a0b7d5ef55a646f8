"""Every legal combination of overlay and components renders, and every object meets the schemas of its version."""

from __future__ import annotations

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.deploy.manifests import KUBERNETES, Manifests, Object, combinations

VERSIONS = ("1.35", "1.36", "1.37")
SCHEMAS = Path(__file__).with_name("schemas")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, tuple[str, ...]], Manifests]:
    folder = tmp_path_factory.mktemp("combinations")
    wanted = combinations()
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda i: Manifests.compose(folder / str(i), *wanted[i]), range(len(wanted)))
    return dict(zip(wanted, found, strict=True))


@functools.cache
def custom(kind: str) -> jsonschema.Draft202012Validator | None:
    file = SCHEMAS / f"{kind}.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text())) if file.exists() else None


def check(thing: Object, version: str) -> None:
    """ValidationError where the object has a field that its schema lacks, lacks one that it needs, or mistypes one."""
    schema = custom(thing["kind"])
    if schema is not None:
        schema.validate(thing)
    else:
        kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.timeout(180)
def test_every_combination_renders(rendered: dict[tuple[str, tuple[str, ...]], Manifests]) -> None:
    assert len(rendered) == 249
    assert all(m.all("Deployment") for m in rendered.values())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_meets_its_schema(rendered: dict[tuple[str, tuple[str, ...]], Manifests], version: str) -> None:
    distinct = {json.dumps(thing, sort_keys=True): thing for m in rendered.values() for thing in m.objects}
    for thing in distinct.values():
        check(thing, version)
    assert {
        "ScaledObject",
        "HorizontalPodAutoscaler",
        "ServiceMonitor",
        "PrometheusRule",
        "GRPCRoute",
        "HTTPRoute",
    } <= {thing["kind"] for thing in distinct.values()}


def test_no_two_objects_of_a_combination_bear_one_name(
    rendered: dict[tuple[str, tuple[str, ...]], Manifests],
) -> None:
    for m in rendered.values():
        names = [(thing["kind"], thing["metadata"]["name"]) for thing in m.objects]
        assert len(names) == len(set(names))


def test_everything_lies_in_the_namespace(rendered: dict[tuple[str, tuple[str, ...]], Manifests]) -> None:
    for m in rendered.values():
        assert {t["metadata"].get("namespace") for t in m.objects if t["kind"] != "Namespace"} == {"winnow"}


def test_both_pools_are_alike() -> None:
    base = KUBERNETES / "base"
    embed = (base / "embed.yaml").read_text()
    for old, new in (
        ("embed.v1.EmbedService", "rerank.v1.RerankService"),
        ("embed", "rerank"),
        ("EMBED", "RERANK"),
        ("50051", "50052"),
        ("9091", "9092"),
    ):
        embed = embed.replace(old, new)
    assert embed == (base / "rerank.yaml").read_text()
