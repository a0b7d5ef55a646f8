"""The images as far as they can be judged without a docker daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.images import copied
from tests.deploy.manifests import KUBERNETES, ROOT, Manifests

DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_is_content(file: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), file], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("file", [f for f in DOCKERFILES if f.stem != "weights"], ids=lambda file: file.stem)
def test_base_image_is_pinned_by_digest_and_user_is_no_root(file: Path) -> None:
    text = file.read_text()
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}$", text, re.M)
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"${PYTHON}"}
    user = re.findall(r"^USER (\d+):(\d+)$", text, re.M)[-1]
    pods = Manifests.render(KUBERNETES / "base").pods()
    name = f"winnow-{file.stem}"
    contexts = [p.spec["securityContext"] for p in pods if any(name in c["image"] for c in p.containers())]
    assert contexts
    assert {(str(c["runAsUser"]), str(c["runAsGroup"])) for c in contexts} == {user}


def test_what_is_copied_exists_and_the_gateway_has_no_model_code() -> None:
    gateway = copied("winnow-gateway")
    assert {path for path in gateway if path.parts[0] == "services"} == {Path("services/api"), Path("services/runtime")}
    for image in ("winnow-gateway", "winnow-worker"):
        for path in copied(image):
            assert (ROOT / path).exists() or path == Path("models"), path
