"""The channel to a gateway: TLS, the caller's token, and when a proxy is used."""

import os
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import unquote

import grpc

from winnow_cli.errors import CommandError


def open_channel(address: str, tls_ca: str | None = None, environ: Mapping[str, str] = os.environ) -> grpc.Channel:
    """Open a channel to `address`, any gRPC target; with `tls_ca` (a PEM file) it speaks TLS.

    Message sizes are the gateway's to limit. OSError if the file cannot be read, CommandError if it holds no
    certificate.
    """
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if bypasses_proxy(address, environ):
        options.append(("grpc.enable_http_proxy", 0))
    if tls_ca is None:
        return grpc.insecure_channel(address, options=options)
    certificates = Path(tls_ca).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in certificates:
        raise CommandError(f"--tls-ca: {tls_ca} holds no certificate in PEM form")
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificates), options=options)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carry a token. White space around it, as a file's line feed, is not part of it.

    CommandError if it cannot stand in a header.
    """
    token = (token or "").strip()
    if not token:
        return ()
    if not all("!" <= character <= "~" for character in token):
        raise CommandError("the token may hold only printable ASCII without spaces")
    return (("authorization", f"Bearer {token}"),)


def bypasses_proxy(address: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to connect directly even if the environment names a proxy: on this machine, or excluded by no_proxy.

    Like curl, and unlike gRPC itself, this reads NO_PROXY in capitals too. An entry is a host, a domain with all below
    it, an address, a network (10.0.0.0/8), or "*".
    """
    host = _host(address)
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    ip = _ip(host)
    if ip is not None and (ip.is_loopback or ip.is_unspecified):
        return True
    entries = ",".join(environ.get(name, "") for name in ("no_proxy", "NO_PROXY")).lower().split(",")
    return any(_matches(host, ip, entry.strip()) for entry in entries if entry.strip())


def _matches(host: str, ip: IPv4Address | IPv6Address | None, entry: str) -> bool:
    name = entry.removeprefix("*").lstrip(".")
    if not name or host == name or host.endswith(f".{name}"):
        return True
    try:
        return ip is not None and ip in ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # a host's name
        return False


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _host(address: str) -> str | None:
    """Return the host of a gRPC target in lower case; None for a unix socket."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme in {"unix", "unix-abstract", "vsock"}:
        return None
    if colon and scheme in {"dns", "ipv4", "ipv6", "passthrough"}:
        address = rest.rsplit("/", 1)[-1].split(",")[0]
    address = unquote(address)
    if address.startswith("["):
        return address[1:].partition("]")[0].lower()
    host, _, port = address.rpartition(":")
    return (host if host and ":" not in host and (port.isdigit() or not port) else address).lower()
