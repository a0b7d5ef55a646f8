"""Authorisation: which methods a caller may call, and which collections it may use."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from gateway.callers.methods import STREAMS, group_of, short_name
from gateway.callers.policies import Policies
from gateway.callers.quotas import Quotas
from gateway.telemetry import GatewayMetrics
from services.runtime import callers
from services.runtime.errors import PermissionDenied, Problem
from services.runtime.interceptors.interceptor import HEALTH, REFLECTION, Context, Interceptor


class Access:
    """What the policies allow the current caller."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def require_method(self, method: str) -> None:
        """Raises PermissionDenied if the caller may not call it. `method`: its short name."""
        name = callers.current().name
        if not self._policies.of(name).allows(method):
            raise PermissionDenied(name, f"call {method}", f"the method {method} or the group {group_of(method)}")

    def require_collection(self, name: str, target: str | None = None) -> None:
        """Raises PermissionDenied if the caller may not use the collection or alias.

        `target`: the collection that the name stands for, if it is an alias; the caller must be allowed both.
        """
        if not self.sees(name):
            raise PermissionDenied(callers.current().name, f'use "{name}"', f"the collection {name}")
        if target is not None and not self.sees(target):
            needs = f"the collection that {name} stands for"
            raise PermissionDenied(callers.current().name, f'use the collection behind "{name}"', needs)

    def sees(self, collection: str) -> bool:
        """Whether the caller may use the collection or alias."""
        return self._policies.of(callers.current().name).sees(collection)


class AccessInterceptor(Interceptor):
    """PERMISSION_DENIED for methods that the caller may not call. Counts its refused calls; paces its streams."""

    exempt = (HEALTH, REFLECTION)

    def __init__(self, access: Access, quotas: Quotas, metrics: GatewayMetrics) -> None:
        self._access, self._quotas, self._metrics = access, quotas, metrics

    @contextmanager
    def call(self, method: str, context: Context) -> Iterator[None]:
        """Around one call."""
        name = short_name(method)
        try:
            self._access.require_method(name)
            with self._quotas.paced() if name in STREAMS else nullcontext():
                yield
        except Problem as problem:
            self._metrics.caller_refused(self._quotas.label(callers.current()), problem.reason)
            raise
