"""Settings of the processes in a stack: those in the environment override the stack's defaults."""

import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from deploy.local.process import StartError

PARTS = ("embed", "rerank", "gateway")
# Settings that connect a process to others: addresses, targets and credentials.
_CONNECTIONS = re.compile(r"_(LISTEN|TARGET|URL|TLS|TLS_[A-Z_]+|AUTH_TOKENS_FILE|CALLERS_FILE|TOKEN)$")


def settings_in(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of our processes in an environment, by upper-case name. Names are case-insensitive."""
    prefixes = tuple(f"{part.upper()}_" for part in PARTS)
    return {name.upper(): value for name, value in environ.items() if name.upper().startswith(prefixes)}


def without_connections(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """An environment for a private stack, and the names of the settings that were removed from it."""
    dropped = sorted(
        name for name in environ if settings_in({name: ""}) and _CONNECTIONS.search(name.upper()) is not None
    )
    return {name: value for name, value in environ.items() if name not in dropped}, dropped


def check_addresses(addresses: Mapping[str, str]) -> None:
    """Raises StartError if one of the addresses (HOST:PORT by setting) is in use, or if two are equal.

    Invalid addresses are ignored here; the process refuses them with an error that names the setting.
    """
    with ExitStack() as held:
        for name, address in addresses.items():
            host, _, port = address.rpartition(":")
            if not port.isdigit() or not 0 < int(port) < 65536:
                continue
            try:
                _listen(held, host.strip("[]"), int(port))
            except OSError as error:
                raise StartError(
                    f"{address} is not available ({error.strerror}): stop the process that listens there, or set"
                    f" {name}=HOST:PORT to another address"
                ) from None


def _listen(held: ExitStack, host: str, port: int) -> None:
    for family, kind, protocol, _, address in set(
        socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ):
        probe = held.enter_context(socket.socket(family, kind, protocol))
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        probe.bind(address)
        probe.listen()


def reachable(address: str) -> str:
    """The address to call for a listen address: localhost instead of a wildcard."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in {"[::]", "0.0.0.0"} else address
