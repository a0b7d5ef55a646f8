"""Runs the gateway: `python -m gateway`."""

from services.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the heavy imports

import sys

from gateway.application import Gateway, front
from gateway.settings import GatewaySettings
from services.runtime import process


def main() -> None:
    """Runs the process to its end."""
    settings, telemetry = process.begin("gateway", GatewaySettings)
    sys.exit(process.run(settings, lambda: Gateway(settings, telemetry), telemetry, front(settings)))


if __name__ == "__main__":
    main()
