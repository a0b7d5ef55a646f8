"""Cache keys: everything that changes an answer is in the key, and nothing else.

A key is `winnow:e:{fingerprint}:` or `winnow:s:{fingerprint}:` and a 160-bit BLAKE2b digest in hex. What is hashed is a
list of length-prefixed fields, so no two different lists ever give the same bytes. The digest is keyed with the tenant
salt: without the salt nobody can tell from a key which text it stands for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from winnow.common.v1 import common_pb2
from winnow.embed.v1 import embed_pb2

_DIGEST_BYTES = 20


@dataclass(frozen=True, slots=True)
class EmbedFields:
    """What decides a vector beside its text, with every default resolved."""

    input_type: embed_pb2.InputType
    instruction: str  # "" for DOCUMENT
    max_tokens: int
    truncation: common_pb2.Truncation


@dataclass(frozen=True, slots=True)
class RerankFields:
    """What decides a score beside the document, with every default resolved."""

    query: str
    instruction: str
    max_tokens: int
    truncation: common_pb2.Truncation


class Keyspace:
    """Makes the keys of one tenant."""

    def __init__(self, salt: str) -> None:
        # BLAKE2b takes a key of at most 64 bytes: the size of this digest.
        self._salt = hashlib.blake2b(salt.encode()).digest() if salt else b""

    def embed(self, fingerprint: str, fields: EmbedFields, texts: Sequence[str]) -> list[bytes]:
        """One key for each text."""
        return self._keys(
            b"winnow:e:",
            fingerprint,
            (
                embed_pb2.InputType.Name(fields.input_type),
                fields.instruction,
                str(fields.max_tokens),
                common_pb2.Truncation.Name(fields.truncation),
            ),
            texts,
        )

    def rerank(self, fingerprint: str, fields: RerankFields, documents: Sequence[str]) -> list[bytes]:
        """One key for each document."""
        return self._keys(
            b"winnow:s:",
            fingerprint,
            (fields.instruction, fields.query, str(fields.max_tokens), common_pb2.Truncation.Name(fields.truncation)),
            documents,
        )

    def _keys(self, kind: bytes, fingerprint: str, fields: Sequence[str], texts: Sequence[str]) -> list[bytes]:
        head = hashlib.blake2b(key=self._salt, digest_size=_DIGEST_BYTES)
        for field in (kind, fingerprint.encode(), *(field.encode() for field in fields)):
            head.update(len(field).to_bytes(8, "little") + field)
        prefix = kind + fingerprint.encode() + b":"
        keys = []
        for text in texts:
            data = text.encode()
            hasher = head.copy()  # the common head is hashed once
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
            keys.append(prefix + hasher.hexdigest().encode())
        return keys
