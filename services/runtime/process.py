"""The steps of every process: settings, log, telemetry, serve, exit status.

A `__main__` installs `early_signals` before it imports this module, which takes a second to load.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from services.runtime.server import Application, MakeFront, serve
from services.runtime.settings import ProcessSettings, Settings, load, log_settings
from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry

log = logging.getLogger("winnow.process")


def begin(name: str, kind: type[Settings]) -> tuple[Settings, Telemetry]:
    """Reads the settings, then sets up the log and telemetry. `name` is the process's short name ("embed").

    Ends the process with status 2 if a setting is wrong, and with status 0 after --help.
    """
    settings = load(kind, sys.argv[1:])
    logs.configure(settings.log_level, settings.log_format)
    log_settings(settings, logging.getLogger(f"winnow.{name}"))
    return settings, Telemetry.start(f"winnow-{name}", settings.metrics_listen)


def run(
    settings: ProcessSettings,
    make: Callable[[], Application],
    telemetry: Telemetry,
    make_front: MakeFront | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT, then shuts telemetry down; returns the exit status.

    `make` is called on the event loop. Its OSError or ValueError is logged, and the status is 1.
    """
    try:
        return asyncio.run(_serve(settings, make, telemetry, make_front))
    finally:
        telemetry.shutdown()


async def _serve(
    settings: ProcessSettings, make: Callable[[], Application], telemetry: Telemetry, make_front: MakeFront | None
) -> int:
    try:
        application = make()
    except (OSError, ValueError) as error:  # a TLS file that cannot be read, or is malformed
        log.error("cannot start: %s", error)
        return 1
    return await serve(settings, application, telemetry, make_front)
