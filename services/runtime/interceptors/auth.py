"""Requires a bearer token if the process has a file of tokens."""

from __future__ import annotations

from opentelemetry import trace

from services.runtime.bearer_tokens import BearerTokens
from services.runtime.errors import Unauthenticated
from services.runtime.interceptors.interceptor import Context, Interceptor
from services.runtime.telemetry import names

_SCHEME = "bearer "


class AuthInterceptor(Interceptor):
    """UNAUTHENTICATED without a valid token. The span has the token's name, if it has one, never the token itself."""

    infrastructure = False

    def __init__(self, tokens: BearerTokens) -> None:
        self._tokens = tokens

    def admit(self, context: Context) -> None:
        """Raises Unauthenticated if the call has no valid token."""
        header = next((str(v) for k, v in context.invocation_metadata() or () if k == "authorization"), "")
        name = self._tokens.name_of(header[len(_SCHEME) :]) if header.lower().startswith(_SCHEME) else None
        if name is None:
            raise Unauthenticated
        trace.get_current_span().set_attribute(names.CLIENT, name)
