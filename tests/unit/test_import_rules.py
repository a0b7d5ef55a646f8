"""Who may import whom, and that stubs match the contract. ARCHITECTURE.md says why."""

import ast
import filecmp
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Package → what it must not import, directly or through a submodule.
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
GATEWAY = ("api", "search", "index", "models", "cache", "redis")
# What these may import: modules that know none of the packages.
SHARED = {"gateway.errors", "gateway.telemetry"}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def violations(root: Path, package: str, forbidden: Iterable[str]) -> set[str]:
    files = sorted((root / package).rglob("*.py"))
    assert files, f"no such package: {package}"
    return {
        f"{path.relative_to(root)} imports {name}"
        for path in files
        for name in imported_modules(path)
        for module in forbidden
        if name == module or name.startswith(f"{module}.")
    }


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    assert not violations(ROOT, package, FORBIDDEN[package])


@pytest.mark.parametrize("package", GATEWAY)
def test_imports_within_the_gateway_run_one_way(package: str) -> None:
    before = [f"gateway.{other}" for other in GATEWAY[: GATEWAY.index(package)]]
    assert not violations(ROOT, f"gateway/{package}", [*before, "gateway.application", "gateway.settings"])


def test_what_the_gateways_packages_share_imports_none_of_them() -> None:
    packages = {f"gateway.{package}" for package in GATEWAY}
    for module in SHARED:
        imported = imported_modules(ROOT / f"{module.replace('.', '/')}.py")
        assert not {name for name in imported for package in packages if name.startswith(package)}


def test_all_packages_of_the_gateway_have_their_place() -> None:
    assert {path.name for path in (ROOT / "gateway").iterdir() if list(path.glob("*.py"))} == set(GATEWAY)


def test_a_planted_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "services" / "engine").mkdir(parents=True)
    (tmp_path / "services" / "engine" / "planted.py").write_text(
        "def late():\n    from services.runtime import errors\n"
    )
    assert violations(tmp_path, "services/engine", FORBIDDEN["services/engine"]) == {
        "services/engine/planted.py imports services.runtime",
        "services/engine/planted.py imports services.runtime.errors",
    }


def test_production_code_needs_no_transformers() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("services", "gateway", "winnow_cli", "clients", "deploy")
        for path in (ROOT / package).rglob("*.py")
        for name in imported_modules(path)
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
