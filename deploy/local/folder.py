"""A folder that is locked by one stack, for its logs and, optionally, its data."""

import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from deploy.local.process import StartError


class InUseError(StartError):
    """The folder is locked by another stack."""


class Folder:
    """Creates and locks the folder. The lock is released when no process has `lock`, a file descriptor, open."""

    def __init__(self, path: Path) -> None:
        """Raises InUseError if another stack has locked the folder, StartError if it cannot be created."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StartError(f"{path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.lock)
            raise InUseError(f"{path} is in use by another stack, which is running or stopping") from None

    @classmethod
    def free(cls, path: Path) -> "Folder":
        """The first of `path`, `path-2`, `path-3` … that is not locked by another stack."""
        for number in count(1):
            with suppress(InUseError):
                return cls(path if number == 1 else path.with_name(f"{path.name}-{number}"))
        raise AssertionError  # count() has no end

    def close(self) -> None:
        """Releases the folder. Its contents stay."""
        os.close(self.lock)
