"""What the tests that run containers need of this machine."""

from __future__ import annotations

import functools
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support import checkpoints


@functools.cache
def missing() -> str | None:
    """Why containers cannot be run here; None where they can."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, timeout=10)
        if done.returncode != 0:
            return "this system lets nobody make user and mount namespaces"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names:
            names.bind(("127.9.0.10", 53))
    except (OSError, subprocess.SubprocessError) as error:
        return f"containers' names need Linux and port 53 of a loopback address: {error}"
    return None


needs_sandbox = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def models(factory: pytest.TempPathFactory) -> Path:
    """Stands for the folder models/ of the worker image: tiny random checkpoints under the bundled names."""
    folder = factory.mktemp("models")
    for name in ("nano-embed", "nano-rerank"):
        checkpoints.save(folder / name, "tied")
    return folder
