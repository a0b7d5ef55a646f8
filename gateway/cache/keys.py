"""Cache keys: a key has everything that changes an answer, and nothing else.

A key is `winnow:e:{fingerprint}:` or `winnow:s:{fingerprint}:` and a 160-bit BLAKE2b digest in hex. The hashed fields
are length-prefixed, so that different lists of fields are never the same bytes. The digest is keyed with the tenant's
salt: without the salt, a text cannot be confirmed from its key.
"""

import hashlib
from collections.abc import Sequence

_DIGEST_BYTES = 20
_KINDS = {"embed": b"winnow:e:", "rerank": b"winnow:s:"}


class CacheKeys:
    """Makes the keys of one tenant."""

    def __init__(self, salt: str) -> None:
        # BLAKE2b takes a key of at most 64 bytes: the size of this digest.
        self._salt = hashlib.blake2b(salt.encode()).digest() if salt else b""

    def keys(self, kind: str, fingerprint: str, identity: Sequence[str], texts: Sequence[str]) -> list[bytes]:
        """One key for each text. `kind`: "embed" or "rerank"; `identity`: what else decides the answer."""
        start = _KINDS[kind]
        head = hashlib.blake2b(key=self._salt, digest_size=_DIGEST_BYTES)
        for field in (start, fingerprint.encode(), *(field.encode() for field in identity)):
            head.update(len(field).to_bytes(8, "little") + field)
        prefix = start + fingerprint.encode() + b":"
        keys = []
        for text in texts:
            data = text.encode()
            hasher = head.copy()  # the common part is hashed once
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
            keys.append(prefix + hasher.hexdigest().encode())
        return keys
