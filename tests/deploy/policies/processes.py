"""Which of the containers run our own processes, and under which settings."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.settings import GatewaySettings
from services.embed.settings import EmbedSettings
from services.rerank.settings import RerankSettings
from services.runtime.settings import ProcessSettings
from tests.deploy.manifests import Manifests, Object, Pods

SETTINGS: dict[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "services.embed": EmbedSettings,
    "services.rerank": RerankSettings,
}


def module_of(container: Object) -> str | None:
    """The Python module that a container runs, where it runs one of ours."""
    words = [*container.get("command", []), *container.get("args", [])]
    return words[2] if words[:2] == ["python", "-m"] else None


def ours(m: Manifests) -> Iterator[tuple[Pods, Object, type[ProcessSettings], dict[str, str | None]]]:
    for pods, container in m.containers():
        module = module_of(container)
        if module is not None:
            yield pods, container, SETTINGS[module], m.settings(container)
