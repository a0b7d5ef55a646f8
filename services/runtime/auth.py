"""Who may call: bearer tokens from a file, and TLS from certificate files. Both are picked up when the files change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

VISIBLE = re.compile(r"[!-~]*")
"""What a bearer token may be made of: what a header can carry, without white space."""

log = logging.getLogger("winnow.auth")


class Watched:
    """Files whose bytes are read again when a file's identity, time or size changes.

    Kubernetes swaps a mounted secret by renaming a link, so the files are followed by path, never held open. Contents
    that `check` refuses with a ValueError, whose text goes to the log, are never given out: a file may be seen while it
    is written. The first contents must be good: OSError where a file cannot be read, and what `check` raises.
    """

    def __init__(self, *paths: Path, check: Callable[[tuple[bytes, ...]], object] | None = None) -> None:
        self._paths, self._check = paths, check
        self._told = ""  # what keeps the files from being read now
        self._seen = self._stamp()
        self._contents = self._read()

    def read(self) -> tuple[bytes, ...]:
        """Contents in the order of the paths. While they cannot be read, or are not good, the last good ones."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                contents = self._read()
                if self._stamp() == stamp:  # else they are being written, and looked at again by the next call
                    self._seen, self._contents = stamp, contents
                    log.info("read again: %s", ", ".join(path.name for path in self._paths))
            self._told = ""
        except (OSError, ValueError) as error:
            self._tell(f"cannot read {error.filename}" if isinstance(error, OSError) else str(error))
        return self._contents

    def _tell(self, problem: str) -> None:
        if problem != self._told:
            log.error("%s; going on with what was read before", problem)
        self._told = problem

    def _read(self) -> tuple[bytes, ...]:
        contents = tuple(path.read_bytes() for path in self._paths)
        if self._check is not None:
            self._check(contents)
        return contents

    def _stamp(self) -> Sequence[tuple[int, int, int]]:
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (path.stat() for path in self._paths)]


class Tokens:
    """Bearer tokens in UTF-8: "token" or "name token" a line; empty lines, and those that begin with #, are skipped.

    Raises OSError where the file cannot be read, ValueError where it holds no token or a malformed line.
    """

    def __init__(self, path: Path) -> None:
        self._file = Watched(path, check=lambda contents: _names(path, contents[0]))
        self._path = path
        self._raw = b""
        self._names: dict[bytes, str] = {}
        self._refresh()

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
        if raw is not self._raw:
            self._raw, self._names = raw, _names(self._path, raw)


def _names(path: Path, raw: bytes) -> dict[bytes, str]:
    """Digest of a token → its name. ValueError tells the line, and nothing of what stands in it."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        *name, token = line.replace("\t", " ").split(" ")
        name = [word for word in name if word]
        if len(name) > 1 or not all(word.isprintable() for word in name) or not VISIBLE.fullmatch(token):
            raise ValueError(f'{path}, line {number}: must be "token" or "name token", the token of visible ASCII')
        names[_digest(token)] = name[0] if name else ""
    if not names:
        raise ValueError(f"{path} holds no token; every call would be refused")
    return names


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def pem(cert: Path | None, key: Path | None, ca: Path | None) -> Callable[[object], None]:
    """A check for `Watched`: ValueError unless the files are a certificate chain with its key, and certificates."""

    def check(contents: object) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # how strong keys must be is for gRPC and the peer to say
        wrong = ""
        try:
            if cert is not None and key is not None:
                wrong = f"{cert} and {key} are not a certificate chain and its private key in PEM"
                context.load_cert_chain(cert, key, password="")  # it would ask a terminal for one
            if ca is not None:
                wrong = f"{ca} holds no certificate in PEM"
                context.load_verify_locations(ca)
        except ssl.SSLError:
            raise ValueError(wrong) from None

    return check


def server_credentials(cert: Path, key: Path, ca: Path | None) -> grpc.ServerCredentials:
    """TLS for a server; with `ca` callers must show a certificate that it signed.

    grpc asks for the files at each handshake, so a renewed certificate serves the next connection.
    OSError where a file cannot be read, ValueError where it holds something else.
    """
    files = Watched(*(path for path in (key, cert, ca) if path is not None), check=pem(cert, key, ca))
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
