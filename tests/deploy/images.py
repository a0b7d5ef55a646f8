"""What our images hold, read from their Dockerfiles."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

from deploy.local.redis import find_redis_server
from tests.deploy.manifests import ROOT

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "sys", "dev", "etc/ssl", "etc/ld.so.cache", "etc/nsswitch.conf")
_VENV, _REDIS = "/opt/venv", "/opt/redis"
_WORKER_ONLY = ("torch", "tokenizers", "safetensors", "huggingface_hub", "transformers")
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


def filesystem(image: str, models: Path, nowhere: Path) -> list[tuple[str, str]]:
    """What stands for an image's files: (path of this machine, path in the container).

    The system, Python and the packages are this machine's, of our code there is what the Dockerfile copies and no
    more. `models` stands for the folder models/; `nowhere`, an empty folder, for packages that the image lacks.
    """
    parts = [(f"/{name}", f"/{name}") for name in _SYSTEM if Path(f"/{name}").exists()]
    if image == "redis":
        server = find_redis_server()
        assert server, "no redis-server 8: make setup-dev brings it"
        return [*parts, (str(server.parent), _REDIS)]
    parts += [(sys.base_prefix, sys.base_prefix), (sys.prefix, _VENV)]
    for path in copied(image):
        parts.append((str(models if path == Path("models") else ROOT / path), f"/app/{path}"))
    if image == "winnow-gateway":
        packages = Path(sysconfig.get_path("purelib"))
        inside = Path(_VENV) / packages.relative_to(sys.prefix)
        parts += [(str(nowhere), str(inside / name)) for name in _WORKER_ONLY if (packages / name).is_dir()]
    return parts


def variables(image: str) -> dict[str, str]:
    """The variables that an image sets."""
    if image == "redis":
        return {"PATH": f"{_REDIS}:/usr/bin:/bin"}
    return {name: value.replace("$PATH", "/usr/bin:/bin") for name, value in environment(image).items()}
