"""Who may import whom, and that stubs match the contract. ARCHITECTURE.md says why."""

import ast
import filecmp
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Package or module → what it must not import, directly or through a submodule.
FORBIDDEN = {
    "services/engine": {
        "grpc",
        "redis",
        "opentelemetry",
        "winnow",
        "services.runtime",
        "services.api",
        "services.worker",
        "services.embed",
        "services.rerank",
        "gateway",
    },
    "services/runtime": {
        "torch",
        "redis",
        "services.engine",
        "services.api",
        "services.worker",
        "services.embed",
        "services.rerank",
        "gateway",
    },
    "services/api": {
        "torch",
        "redis",
        "services.engine",
        "services.worker",
        "services.embed",
        "services.rerank",
        "gateway",
    },
    "services/worker": {"redis", "services.embed", "services.rerank", "gateway"},
    "services/embed": {"redis", "services.rerank", "gateway"},
    "services/rerank": {"redis", "services.embed", "gateway"},
    "gateway": {
        "torch",
        "tokenizers",
        "transformers",
        "safetensors",
        "services.engine",
        "services.worker",
        "services.embed",
        "services.rerank",
    },
    # What winnow-client installs: it has no more of the repository than the stubs.
    "winnow_cli": {"torch", "redis", "services", "gateway", "clients", "deploy", "bench", "training"},
    "clients": {"torch", "redis", "services", "gateway", "winnow_cli", "deploy", "bench", "training"},
    "deploy": {"torch", "services", "gateway"},
}
# Packages of the gateway, each of which may import those after it and none before.
GATEWAY = ("http", "api", "search", "index", "models", "callers", "cache", "redis")
_PACKAGES = [f"gateway.{package}" for package in GATEWAY]
_ROOT = ["gateway.__main__", "gateway.application", "gateway.settings"]
# A model family is known to its own folder and to the registry.
_ENGINE = ROOT / "services" / "engine"
_FAMILIES = {f"services.engine.models.{path.parent.name}" for path in _ENGINE.glob("models/*/__init__.py")}
_ANY_FAMILY = [
    *(path.name for path in _ENGINE.iterdir() if path.name not in {"models", "__init__.py", "__pycache__"}),
    "models/base.py",
]
# All rules: those above, those of the gateway's own order, and those of the families.
RULES: dict[str, set[str]] = {
    **FORBIDDEN,
    **{f"gateway/{package}": {*_ROOT, *_PACKAGES[:place]} for place, package in enumerate(GATEWAY)},
    "gateway/__main__.py": {*_PACKAGES},
    "gateway/application.py": {"gateway.__main__"},
    "gateway/settings.py": {*_ROOT, *_PACKAGES} - {"gateway.settings", "gateway.redis"},  # a URL of Redis is a setting
    "gateway/errors.py": {*_ROOT, *_PACKAGES},
    "gateway/telemetry.py": {*_ROOT, *_PACKAGES},
    **{f"services/engine/{place}": _FAMILIES for place in _ANY_FAMILY},
}


def imported_modules(root: Path, path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parent.parts
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def violations(root: Path, place: str, forbidden: Iterable[str]) -> set[str]:
    """`place`: a package, or the file of a module."""
    files = [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py"))
    assert files, f"no such package: {place}"
    return {
        f"{path.relative_to(root)} imports {name}"
        for path in files
        for name in imported_modules(root, path)
        for module in forbidden
        if name == module or name.startswith(f"{module}.")
    }


@pytest.mark.parametrize("place", RULES)
def test_imports_run_one_way(place: str) -> None:
    assert not violations(ROOT, place, RULES[place])


@pytest.mark.parametrize("top", ["gateway", "services"])
def test_each_package_has_a_rule(top: str) -> None:
    found = {path.name for path in (ROOT / top).iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    ruled = {place.split("/")[1] for place in RULES if place.startswith(f"{top}/")}
    assert found - {"__init__.py"} == ruled


def planted(place: str, module: str) -> list[str]:
    """Ways to import a module in a file of `place`, each of them wrong."""
    parent, _, name = module.rpartition(".")
    ways = [f"import {module}", f"import {module}.more as less", f"def late():\n    from {module} import thing"]
    if parent:
        ways.append(f"from {parent} import other, {name}")
    package = place.removesuffix(".py").split("/")
    depth = len(package) - 1 if place.endswith(".py") else len(package)
    top, _, below = module.partition(".")
    if below and package[0] == top:  # a relative import does not leave the top package
        dots = "." * depth
        above, _, last = below.rpartition(".")
        ways += [f"from {dots}{below} import thing", f"from {dots}{above} import {last}"]
    return ways


@pytest.mark.parametrize(("place", "module"), [(place, module) for place in RULES for module in sorted(RULES[place])])
def test_a_planted_import_is_found(tmp_path: Path, place: str, module: str) -> None:
    file = tmp_path / (place if place.endswith(".py") else f"{place}/planted.py")
    file.parent.mkdir(parents=True)
    for way in planted(place, module):
        file.write_text(f"{way}\n")
        assert violations(tmp_path, place, {module}), way


def test_only_what_is_forbidden_is_found(tmp_path: Path) -> None:
    file = tmp_path / "gateway" / "search" / "deeper" / "planted.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import gateway.apiary\nfrom gateway import apiary\nfrom ..index import api\nfrom . import api\nimport api\n"
    )
    assert not violations(tmp_path, "gateway/search", RULES["gateway/search"])
    file.write_text("from ...api import embed\n")
    assert violations(tmp_path, "gateway/search", RULES["gateway/search"]) == {
        "gateway/search/deeper/planted.py imports gateway.api",
        "gateway/search/deeper/planted.py imports gateway.api.embed",
    }


def test_production_code_needs_no_transformers() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("services", "gateway", "winnow_cli", "clients", "deploy")
        for path in (ROOT / package).rglob("*.py")
        for name in imported_modules(ROOT, path)
        if name.split(".")[0] in {"transformers", "sentence_transformers"}
    }
    assert not wrong


def test_stubs_match_the_contract(tmp_path: Path) -> None:
    protos = sorted((ROOT / "protos" / "winnow").rglob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT / 'protos'}",
        f"--python_out={tmp_path}",
        *map(str, protos),
    ]
    subprocess.run(command, check=True, timeout=60)
    for fresh in tmp_path.rglob("*_pb2.py"):
        used = ROOT / fresh.relative_to(tmp_path)
        assert filecmp.cmp(fresh, used, shallow=False), f"{used} does not match protos/: run `make gen`"
