"""Files that are read again when they change, such as a mounted Secret."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger("winnow.auth")


class ReloadingFiles:
    """Files whose bytes are read again when a file's identity, time or size changes.

    Kubernetes swaps a mounted secret by renaming a link, so the files are followed by path, never held open. Contents
    that `check` refuses with a ValueError, whose text goes to the log, are never given out: a file may be seen while it
    is written. The first contents must be good: OSError where a file cannot be read, and what `check` raises.
    """

    def __init__(self, *paths: Path, check: Callable[[tuple[bytes, ...]], object] | None = None) -> None:
        self._paths, self._check = paths, check
        self._logged = ""  # why the files cannot be read now
        self._seen = self._stamp()
        self._contents = self._read()

    def read(self) -> tuple[bytes, ...]:
        """Contents in the order of the paths. While they cannot be read, or are not good, the last good ones."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                contents = self._read()
                if self._stamp() == stamp:  # else they are being written, and looked at again by the next call
                    self._seen, self._contents = stamp, contents
                    log.info("read again: %s", ", ".join(path.name for path in self._paths))
            self._logged = ""
        except (OSError, ValueError) as error:
            self._log(f"cannot read {error.filename}" if isinstance(error, OSError) else str(error))
        return self._contents

    def _log(self, problem: str) -> None:
        if problem != self._logged:
            log.error("%s; going on with what was read before", problem)
        self._logged = problem

    def _read(self) -> tuple[bytes, ...]:
        contents = tuple(path.read_bytes() for path in self._paths)
        if self._check is not None:
            self._check(contents)
        return contents

    def _stamp(self) -> Sequence[tuple[int, int, int]]:
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]
