"""The policies hold for all combinations that differ in what they look at."""

from __future__ import annotations

import pytest

from tests.deploy.manifests import Manifests
from tests.deploy.policies import POLICIES, Policy

ALL = ("prometheus", "otlp", "callers", "tls", "redis-cluster", "gateway-api")
COMBINATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "local": ("local", ()),
    "local-all": ("local", ("keda", *ALL)),
    "gpu-0.6b": ("gpu-0.6b", ()),
    "gpu-0.6b-all": ("gpu-0.6b", ("keda", *ALL, "image-volume")),
    "gpu-8b-all": ("gpu-8b", ("hpa", *ALL)),
    "gpu-8b-image": ("gpu-8b", ("image-volume",)),
}


@pytest.fixture(scope="module", params=COMBINATIONS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return Manifests.compose(tmp_path_factory.mktemp("composed"), *COMBINATIONS[request.param])


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_policy(manifests: Manifests, policy: Policy) -> None:
    assert list(policy(manifests)) == []
