"""Certificates of clients; files of certificates and tokens, replaced as Kubernetes replaces them."""

import datetime
import os
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def replace(path: Path, content: bytes) -> None:
    """As Kubernetes does it: another file in its place."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content)
    os.replace(fresh, path)


class Certificates:
    """A CA with a certificate for `names`, in files."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = names or ("localhost", "127.0.0.1")
        self.cert, self.key, self.ca = folder / "tls.crt", folder / "tls.key", folder / "ca.crt"
        self.issue()

    def issue(self) -> None:
        authority = trustme.CA()
        leaf = authority.issue_cert(*self.names)
        replace(self.key, leaf.private_key_pem.bytes())
        replace(self.cert, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        replace(self.ca, authority.cert_pem.bytes())


def client_certificate(authority: trustme.CA, common_name: str, *uris: str) -> tuple[bytes, bytes]:
    """Certificate and key (PEM) of a client with these URIs as alternative names; trustme issues none with URIs."""
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key, today = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    plain = serialization.NoEncryption()
    return (
        builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
    )


def garbage(files: Certificates, what: str) -> None:
    match what:
        case "truncated":
            for path in (files.cert, files.key, files.ca):
                replace(path, path.read_bytes()[:100])
        case "empty":
            for path in (files.cert, files.key, files.ca):
                replace(path, b"")
        case "another's key":
            replace(files.key, trustme.CA().issue_cert("localhost").private_key_pem.bytes())
        case "gone":
            files.cert.unlink()
