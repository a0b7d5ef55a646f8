"""Run as a script: becomes a container's process, and leaves the host's files behind.

`python sandbox.py SPEC.json` enters a new user and mount namespace, builds a root from what SPEC names, makes it
read-only but for the writable mounts, takes the container's user, gives up the way back to privileges, and becomes the
command with exactly the variables of SPEC. Needs no privileges where the kernel lets anyone make user namespaces.

Not simulated: cgroups (CPU and memory limits), seccomp, a network and process numbers of its own, file owners (every
file of the host seems to belong to the container's user).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_BIND, _RECURSIVE, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x40000, 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = 442, -100, 0x8000, 1
_NO_NEW_PRIVILEGES, _END_WITH_PARENT = 38, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: Path, kind: str | None, flags: int) -> None:
    arguments = (source.encode(), str(target).encode(), kind.encode() if kind else None, flags, None)
    _checked(_libc.mount(*arguments), f"mount {source} at {target}")


def _read_only(target: Path) -> None:
    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]

    attributes = Attributes(set=_ATTR_READ_ONLY)
    result = _libc.syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        str(target).encode(),
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    _checked(result, f"make {target} read-only")


def _become(inside: int, inside_group: int, flags: int) -> None:
    """Enters a user namespace in which this process is user `inside`."""
    outside, outside_group = os.getuid(), os.getgid()
    _checked(_libc.unshare(_NEW_USER | flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inside} {outside} 1")
    Path("/proc/self/gid_map").write_text(f"{inside_group} {outside_group} 1")


def _enter(root: Path) -> None:
    """The root becomes `root`, and the old one is out of reach. (From a chroot no further namespace could be made.)"""
    os.chdir(root)
    number = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _checked(_libc.syscall(number, b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _DETACH), "umount the old root")


def _place(root: Path, target: str, source: str) -> Path:
    """Where `target` is below the new root: an empty file or folder, as `source` is one."""
    place = root / target.lstrip("/")
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return place


def main() -> None:
    """See the module's docstring. SPEC: root (an empty folder), image [[source, target]], files {path: text},

    volumes [[source, target, writable]], user, group, directory, environment, command.
    """
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    root = Path(spec["root"])
    _become(0, 0, _NEW_MOUNTS)
    _mount("none", Path("/"), None, _RECURSIVE | _PRIVATE)
    _mount("root", root, "tmpfs", 0)
    for source, target in spec["image"]:
        if Path(source).is_symlink() and not target.startswith("/app"):
            (root / target.lstrip("/")).symlink_to(os.readlink(source))  # /bin → usr/bin and its like
        else:
            _mount(source, _place(root, target, source), None, _BIND | _RECURSIVE)
    for path, text in spec["files"].items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    places = [(source, _place(root, target, source), writable) for source, target, writable in spec["volumes"]]
    proc = _place(root, "/proc", "/proc")
    for source, place, writable in places:
        if not writable:
            _mount(source, place, None, _BIND)
    _read_only(root)
    for source, place, writable in places:
        if writable:
            _mount(source, place, None, _BIND)
    _mount("/proc", proc, None, _BIND | _RECURSIVE)
    _mount("shm", root / "dev/shm", "tmpfs", 0)
    _enter(root)
    os.chdir(spec["directory"])
    _become(spec["user"], spec["group"], 0)
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _checked(_libc.prctl(_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0), "prctl")
    try:
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    except OSError as error:
        sys.exit(f"{spec['command'][0]}: {error.strerror}")


if __name__ == "__main__":
    main()
