"""What the parts of the stack are told: what the environment says comes first, then the stack's own defaults."""

import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from deploy.local.process import StartError

PARTS = ("embed", "rerank", "gateway")
# Settings that tie a process to others: where it listens, whom it calls, and how they prove who they are.
_CONNECTIONS = re.compile(r"_(LISTEN|TARGET|URL|TLS|TLS_[A-Z_]+|AUTH_TOKENS_FILE|TOKEN)$")


def settings_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of our processes in an environment, by their names in capitals: their case is free."""
    prefixes = tuple(f"{part.upper()}_" for part in PARTS)
    return {name.upper(): value for name, value in environ.items() if name.upper().startswith(prefixes)}


def without_connections(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return an environment for a private stack, and the names of the settings that were left out of it."""
    dropped = sorted(
        name for name in environ if settings_in({name: ""}) and _CONNECTIONS.search(name.upper()) is not None
    )
    return {name: value for name, value in environ.items() if name not in dropped}, dropped


def check_addresses(addresses: Mapping[str, str]) -> None:
    """Raise StartError if one of the addresses (HOST:PORT by setting) is taken, by another process or one another.

    What is no address is left to the process, which refuses it by name.
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
                    f"{address} cannot be had ({error.strerror}): stop what listens there, or set {name}=HOST:PORT to"
                    " another address"
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
    """Return an address to call where the given one was listened on: a wildcard is no place to go to."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in {"[::]", "0.0.0.0"} else address
