"""Requires a bearer token if the process has a file of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import trace

from services.runtime.bearer_tokens import BearerTokens
from services.runtime.errors import Unauthenticated
from services.runtime.interceptors.interceptor import HEALTH, Context, Interceptor, Metadata
from services.runtime.telemetry import names

_SCHEME = "bearer "


class AuthInterceptor(Interceptor):
    """UNAUTHENTICATED without a valid token. The span has the token's name, if it has one, never the token itself."""

    exempt = (HEALTH,)  # probes have no token

    def __init__(self, tokens: BearerTokens) -> None:
        self._tokens = tokens

    def screen(self, method: str, metadata: Metadata) -> None:
        """Raises Unauthenticated if the call has no valid token."""
        self._name(metadata)

    def admit(self, context: Context) -> None:
        """Notes the token's name."""
        trace.get_current_span().set_attribute(names.CLIENT, self._name(context.invocation_metadata() or ()))

    def _name(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        header = next((str(v) for k, v in metadata if k == "authorization"), "")
        name = self._tokens.name_of(header[len(_SCHEME) :]) if header.lower().startswith(_SCHEME) else None
        if name is None:
            raise Unauthenticated
        return name
