"""The README's own kustomization and commands."""

from __future__ import annotations

import pytest

from tests.deploy import readme
from tests.deploy.manifests import ROOT, Manifests
from tests.deploy.policies import POLICIES, Policy


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "winnow").symlink_to(ROOT)
    (folder / "kustomization.yaml").write_text(readme.kustomization())
    return Manifests.render(folder)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_its_kustomization_meets_the_policies(composed: Manifests, policy: Policy) -> None:
    assert list(policy(composed)) == []


def test_its_images_come_from_the_registry_that_it_names(composed: Manifests) -> None:
    ours = {c["image"] for _, c in composed.containers() if "winnow" in c["image"]}
    assert ours == {"registry.example.com/winnow-gateway:0.1.0", "registry.example.com/winnow-worker:0.1.0-cuda"}


def test_five_commands_lead_to_the_first_search() -> None:
    assert [command.split()[0] for command in readme.commands()] == [
        "docker",
        "docker",
        "kubectl",
        "kubectl",
        "kubectl",
    ]


def test_the_files_that_it_names_are_there() -> None:
    for command in readme.commands()[:2]:
        assert (ROOT / command.split("-f ")[1].split()[0]).is_file()
    assert (ROOT / readme.commands()[2].split()[-1] / "kustomization.yaml").is_file()
    assert (ROOT / "deploy" / "autoscale.png").is_file()
