"""Runs the gateway: `python -m gateway`."""

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

import asyncio
import logging
import sys

from gateway.application import Gateway
from gateway.settings import GatewaySettings
from services.runtime.server import serve
from services.runtime.settings import load, log_settings
from services.runtime.telemetry import logs
from services.runtime.telemetry.setup import Telemetry

log = logging.getLogger("winnow.gateway")


async def run(settings: GatewaySettings, telemetry: Telemetry) -> int:
    """Serves to the end; returns the process's exit status."""
    try:
        gateway = Gateway(settings, telemetry)
    except (OSError, ValueError) as error:  # a TLS file that cannot be read, or is none
        log.error("cannot start: %s", error)
        return 1
    return await serve(settings, gateway, telemetry)


def main() -> None:
    """Runs the process to its end."""
    settings = load(GatewaySettings, sys.argv[1:])
    logs.configure(settings.log_level, settings.log_format)
    log_settings(settings, log)
    telemetry = Telemetry.start("winnow-gateway", settings.metrics_listen)
    try:
        status = asyncio.run(run(settings, telemetry))
    finally:
        telemetry.shutdown()
    sys.exit(status)


if __name__ == "__main__":
    main()
