"""Files of certificates and tokens, replaced as Kubernetes replaces them."""

import os
from pathlib import Path

import trustme


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
