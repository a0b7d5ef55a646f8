"""What our images hold, read from their Dockerfiles."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.manifests import ROOT

_COPY = re.compile(r"^COPY (?:--from=(?P<stage>\S+) )?(?P<source>\S+) (?P<target>\S+)$", re.M)


def dockerfile(image: str) -> str:
    """The Dockerfile of `winnow-NAME`."""
    return (ROOT / "deploy" / "docker" / f"{image.removeprefix('winnow-')}.Dockerfile").read_text()


def copied(image: str) -> list[Path]:
    """Paths below the repository's root that the last stage holds below /app, the generated stubs among them."""
    last = dockerfile(image).rpartition("\nFROM ")[2]
    return [Path(match["target"]) for match in _COPY.finditer(last) if not match["target"].startswith("/")]


def environment(image: str) -> dict[str, str]:
    """ENV of the last stage."""
    last = dockerfile(image).rpartition("\nFROM ")[2]
    words = " ".join(re.findall(r"^ENV (.*)$", last, re.M)).split()
    return dict(word.split("=", 1) for word in words)
