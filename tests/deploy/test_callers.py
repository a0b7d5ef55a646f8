"""The component `callers`: its file is read by the gateway that it is mounted into."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.callers.methods import READ, WRITE
from gateway.callers.policies import Policies, Policy
from tests.deploy.manifests import KUBERNETES, Manifests
from tests.deploy.readme import TEXT

FILE = KUBERNETES / "components" / "callers" / "callers.toml"


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return Manifests.compose(tmp_path_factory.mktemp("callers"), "local", ("callers",))


def test_the_file_is_where_the_gateway_looks_for_it(composed: Manifests, tmp_path: Path) -> None:
    pods = next(pods for pods in composed.pods() if pods.name == "winnow-gateway")
    path = Path(str(composed.settings(pods.main)["GATEWAY_CALLERS_FILE"]))
    mount = next(mount for mount in pods.main["volumeMounts"] if mount["mountPath"] == str(path.parent))
    assert mount["readOnly"] is True
    assert "subPath" not in mount
    volume = next(volume for volume in pods.spec["volumes"] if volume["name"] == mount["name"])
    [config] = [m for m in composed.all("ConfigMap") if m["metadata"]["name"] == volume["configMap"]["name"]]
    copy = tmp_path / path.name
    copy.write_text(config["data"][path.name])
    policies = Policies(copy)
    assert policies.of("ingest").methods == sorted(READ | WRITE)
    assert policies.of("ingest").tokens_in_flight == 200_000
    web = policies.of("spiffe://example.org/ns/search/sa/web")
    assert (web.methods, web.sees("docs-1"), web.sees("notes")) == (["GetModel", "Search"], True, False)


def test_the_readme_describes_every_key_and_method(composed: Manifests) -> None:
    section = TEXT.split("\n## Callers")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Policy.model_fields)
    assert set(re.findall(r"`(\w+)`", section)) >= READ | WRITE
