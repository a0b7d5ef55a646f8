"""What deploy/README.md tells its readers to do."""

from __future__ import annotations

import re

from tests.deploy.manifests import ROOT

TEXT = (ROOT / "deploy" / "README.md").read_text()


def kustomization() -> str:
    """The kustomization that composes overlay, components and images."""
    (found,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    return str(found)


def second_installation() -> str:
    """The kustomization of an installation in another namespace."""
    (found,) = re.findall(r"```yml\n(.*?)```", TEXT, re.S)
    return str(found)


def commands() -> list[str]:
    """From an empty cluster to the first search, one command each."""
    block = TEXT.split("first search\n\n```\n", 1)[1].split("```", 1)[0]
    return re.split(r"\n(?=docker|kubectl)", block.strip())


def first_search() -> str:
    """The Python that the last of them runs in a gateway's pod."""
    found = re.search(r"python -c '\n(.*)'", commands()[-1], re.S)
    assert found
    return found[1]
