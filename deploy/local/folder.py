"""A folder that one stack has to itself, for its logs and, if it keeps them, its data."""

import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from deploy.local.process import StartError


class InUseError(StartError):
    """Another stack has the folder."""


class Folder:
    """Creates the folder and locks it. The lock ends with the last process that holds `lock`, a file descriptor."""

    def __init__(self, path: Path) -> None:
        """InUseError if another stack has the folder, StartError if it cannot be made."""
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
            raise InUseError(f"{path} is in use by another stack, which runs or is ending") from None

    @classmethod
    def free(cls, path: Path) -> "Folder":
        """Return the first of `path`, `path-2`, `path-3` … that no other stack has."""
        for number in count(1):
            with suppress(InUseError):
                return cls(path if number == 1 else path.with_name(f"{path.name}-{number}"))
        raise AssertionError  # count() has no end

    def close(self) -> None:
        """Give the folder up; its contents stay."""
        os.close(self.lock)
