"""SIGTERM and SIGINT while a process still imports: it ends at once, with status 0, as nothing has been accepted.

Installed before anything heavy is imported. The kernel drops a signal that the first process of a container has no
handler for, so without one a pod that is deleted while it starts would live on until it is killed.
"""

import os
import signal
from types import FrameType


def install() -> None:
    """Until `services.runtime.server.serve` puts its own handlers in their place."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # Not SystemExit: it would be raised within whatever is being imported, and might be caught there.
    os._exit(0)
