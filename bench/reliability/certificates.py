"""Certificates and a token, in a folder: `ca.crt`, `tls.crt`, `tls.key`, `token`, `tokens`.

One authority signs those of servers and clients, which all use the same. It needs trustme.
"""

import os
from pathlib import Path

import grpc

NAME = "127.0.0.1"
"""For whom the certificates are."""
_TOKEN = "the-bearer-token-of-the-good-caller"


class Certificates:
    """Writes them into `folder`, which must exist."""

    def __init__(self, folder: Path) -> None:
        import trustme  # of the development group

        self.folder = folder
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        (folder / "token").write_text(_TOKEN)
        (folder / "tokens").write_text(f"good {_TOKEN}\n")
        self.renew()

    def renew(self) -> None:
        """Another key and certificate of the same authority, in the place of the last ones."""
        leaf = self._authority.issue_cert(NAME)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        for name, content in (("tls.key", leaf.private_key_pem.bytes()), ("tls.crt", chain)):
            fresh = self.folder / f"{name}.fresh"
            fresh.write_bytes(content)
            os.replace(fresh, self.folder / name)

    def settings(self) -> dict[str, str]:
        """Of gateways and workers, that let in only who has a certificate, and gateways only who has the token too."""
        files = {"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}
        found = {
            f"{prefix}_TLS_{name}": str(self.folder / file)
            for prefix in ("GATEWAY", "GATEWAY_WORKERS", "EMBED", "RERANK")
            for name, file in files.items()
        }
        return {**found, "GATEWAY_WORKERS_TLS": "true", "GATEWAY_AUTH_TOKENS_FILE": str(self.folder / "tokens")}


def credentials(folder: str) -> grpc.ChannelCredentials:
    """Of a client with the certificate and the token in the folder."""
    ca, key, cert = ((Path(folder) / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    token = grpc.access_token_call_credentials((Path(folder) / "token").read_text())
    return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(ca, key, cert), token)
