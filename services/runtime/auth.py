"""Who may call: bearer tokens from a file, and TLS from certificate files. Both are picked up when the files change."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

import grpc

log = logging.getLogger("winnow.auth")


class Watched:
    """Files whose bytes are read again when a file's identity, time or size changes.

    Kubernetes swaps a mounted secret by renaming a link, so the files are followed by path, never held open.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._stamp()
        self._contents = tuple(path.read_bytes() for path in paths)

    def read(self) -> tuple[bytes, ...]:
        """Contents in the order of the paths. While a file cannot be read, the last good ones."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._contents = tuple(path.read_bytes() for path in self._paths)
                self._seen = stamp
                log.info("read again: %s", ", ".join(path.name for path in self._paths))
        except OSError as error:
            log.error("cannot read %s, going on with what was read before", error.filename)
        return self._contents

    def _stamp(self) -> Sequence[tuple[int, int, int]]:
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]


class Tokens:
    """Bearer tokens: "token" or "name token" a line; empty lines and lines that begin with # are skipped.

    Raises OSError where the file cannot be read, ValueError where it holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._file = Watched(path)
        self._raw = b""
        self._names: dict[bytes, str] = {}
        self._refresh()
        if not self._names:
            raise ValueError(f"{path} holds no token; every call would be refused")

    def name_of(self, token: str) -> str | None:
        """The name that goes with a token ("" where it has none); None for an unknown token.

        Digests of equal length are compared in constant time, against all tokens, so the time taken tells nothing.
        """
        self._refresh()
        given, found = _digest(token.strip()), None
        for known, name in self._names.items():
            if hmac.compare_digest(given, known):
                found = name
        return found

    def _refresh(self) -> None:
        (raw,) = self._file.read()
        if raw is self._raw:
            return
        self._raw = raw
        lines = (line.split() for line in raw.decode().splitlines() if line.strip() and not line.startswith("#"))
        self._names = {_digest(parts[-1]): parts[0] if len(parts) > 1 else "" for parts in lines}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def server_credentials(cert: Path, key: Path, ca: Path | None) -> grpc.ServerCredentials:
    """TLS for a server; with `ca` callers must show a certificate that it signed.

    grpc asks for the files at each handshake, so a renewed certificate serves the next connection.
    OSError where a file cannot be read.
    """
    files = Watched(*(path for path in (key, cert, ca) if path is not None))
    last = files.read()

    def configuration(contents: tuple[bytes, ...]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(contents[0], contents[1])], contents[2] if ca is not None else None
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        contents = files.read()
        if contents is last:
            return None  # go on with the present one
        last = contents
        return configuration(contents)

    # None from the fetcher is allowed, and usual; the stubs do not say so.
    return grpc.dynamic_ssl_server_credentials(
        configuration(last),
        fetch,  # type: ignore[arg-type]
        require_client_authentication=ca is not None,
    )


def channel_credentials(
    tls_ca: bytes | None = None, tls_cert: bytes | None = None, tls_key: bytes | None = None
) -> grpc.ChannelCredentials:
    """TLS for a client, from PEM: the CA judges the server (None: the system's); the others are shown to it."""
    return grpc.ssl_channel_credentials(root_certificates=tls_ca, private_key=tls_key, certificate_chain=tls_cert)
