"""TLS from certificate files, which are read again when they change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import grpc

from services.runtime.reloading_files import ReloadingFiles


def pem(cert: Path | None, key: Path | None, ca: Path | None) -> Callable[[object], None]:
    """A check for `ReloadingFiles`: ValueError unless they are a certificate chain with its key, and certificates."""

    def check(contents: object) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # gRPC and the peer decide how strong keys must be
        wrong = ""
        try:
            if cert is not None and key is not None:
                wrong = f"{cert} and {key} are not a certificate chain and its private key in PEM"
                context.load_cert_chain(cert, key, password="")  # without it OpenSSL asks the terminal
            if ca is not None:
                wrong = f"{ca} holds no certificate in PEM"
                context.load_verify_locations(ca)
        except ssl.SSLError:
            raise ValueError(wrong) from None

    return check


def server_credentials(cert: Path, key: Path, ca: Path | None) -> grpc.ServerCredentials:
    """TLS for a server; with `ca`, clients must present a certificate that it signed.

    grpc asks for the certificate at each handshake, so a new file applies to the next connection.
    OSError if a file cannot be read, ValueError if it is malformed.
    """
    files = ReloadingFiles(*(path for path in (key, cert, ca) if path is not None), check=pem(cert, key, ca))
    last = files.read()

    def configuration(contents: tuple[bytes, ...]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(contents[0], contents[1])], contents[2] if ca is not None else None
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal last
        contents = files.read()
        if contents is last:
            return None  # keep the current one
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
    """TLS for a client, from PEM: `tls_ca` verifies the server (None: the system's); the others are the client's."""
    return grpc.ssl_channel_credentials(root_certificates=tls_ca, private_key=tls_key, certificate_chain=tls_cert)
