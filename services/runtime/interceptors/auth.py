"""Tells who makes a call, and requires a bearer token if the process has a file of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import trace

from services.runtime import callers
from services.runtime.bearer_tokens import BearerTokens
from services.runtime.callers import Caller
from services.runtime.errors import Unauthenticated
from services.runtime.interceptors.interceptor import HEALTH, Context, Interceptor, Metadata
from services.runtime.telemetry import names

_SCHEME = "bearer "


class AuthInterceptor(Interceptor):
    """UNAUTHENTICATED without a valid token. The caller has the token's name, else that of its certificate.

    `tokens`: None if none is required. `certificates`: whether clients must present one. `passed_names`: whether a peer
    may name the caller that it works for, as a gateway does.
    """

    exempt = (HEALTH,)  # probes have no token

    def __init__(self, tokens: BearerTokens | None, *, certificates: bool, passed_names: bool) -> None:
        self._tokens, self._certificates, self._passed_names = tokens, certificates, passed_names

    def screen(self, method: str, metadata: Metadata) -> None:
        """Raises Unauthenticated if the call has no valid token."""
        self._token_name(metadata)

    @contextmanager
    def call(self, method: str, context: Context) -> Iterator[None]:
        """Sets the caller, in the span too."""
        caller = self._caller(context)
        if caller.name:
            trace.get_current_span().set_attribute(names.CLIENT, caller.name)
        with callers.calling(caller):
            yield

    def _caller(self, context: Context) -> Caller:
        metadata = context.invocation_metadata() or ()
        name = self._token_name(metadata)
        if self._passed_names and (passed := callers.passed_name(metadata)):
            return Caller(passed)
        if name:
            return Caller(name, listed=True)
        return Caller(callers.certificate_name(context.auth_context()) if self._certificates else "")

    def _token_name(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        if self._tokens is None:
            return ""
        header = next((str(v) for k, v in metadata if k == "authorization"), "")
        name = self._tokens.name_of(header[len(_SCHEME) :]) if header.lower().startswith(_SCHEME) else None
        if name is None:
            raise Unauthenticated
        return name
