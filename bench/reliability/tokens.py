"""Callers that have bearer tokens, as a file of a gateway."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def token(name: str) -> str:
    """What a caller sends."""
    return f"the-bearer-token-of-the-{name}-caller"


@contextmanager
def tokens_file(*names: str) -> Iterator[dict[str, str]]:
    """The setting of a gateway that these callers have tokens for."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("".join(f"{name} {token(name)}\n" for name in names))
        file.flush()
        yield {"GATEWAY_AUTH_TOKENS_FILE": file.name}
