"""Who makes a call: the name of its bearer token or of its client certificate.

The auth interceptor makes the caller the current one for the time of the call; tasks that the call starts inherit it.
A gateway passes the name on to its workers, which share their time fairly between callers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import quote, unquote

METADATA_KEY = "winnow-caller"
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Caller:
    """`name`: "" if the caller has none. `listed`: whether the file of tokens has it, so that it is one of few."""

    name: str = ""
    listed: bool = False


_CURRENT: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 - it is immutable


def current() -> Caller:
    """The caller of the call that this task belongs to."""
    return _CURRENT.get()


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Makes the caller the current one within the `with` block."""
    token = _CURRENT.set(caller)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def certificate_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The SPIFFE id of a verified client certificate, else its common name; "" if there is neither."""
    for key in ("peer_spiffe_id", "x509_common_name"):
        for value in auth_context.get(key, ()):
            return value.decode("utf-8", "replace")[:_MAX_NAME]
    return ""


def passed_on() -> tuple[tuple[str, str], ...]:
    """Metadata that tells another server of this system who the current caller is."""
    name = current().name
    return ((METADATA_KEY, quote(name, safe=":/@")),) if name else ()


def passed_name(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The name in metadata of `passed_on`; "" if there is none."""
    sent = next((value for key, value in metadata if key == METADATA_KEY), "")
    return unquote(sent)[:_MAX_NAME] if isinstance(sent, str) else ""
