"""The rules of the house that no single file can hold: who may import whom, and that stubs match the contract."""

import ast
import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Room → what it must not import, directly or through a submodule.
FORBIDDEN = {
    "services/engine": {
        "grpc",
        "redis",
        "opentelemetry",
        "winnow",
        "services.runtime",
        "services.embed",
        "services.rerank",
        "gateway",
    },
    "services/runtime": {"torch", "redis", "services.engine", "services.embed", "services.rerank", "gateway"},
    "services/worker": {"redis", "services.embed", "services.rerank", "gateway"},
    "services/embed": {"redis", "services.rerank", "gateway"},
    "services/rerank": {"redis", "services.embed", "gateway"},
    "gateway": {
        "torch",
        "tokenizers",
        "transformers",
        "safetensors",
        "services.engine",
        "services.embed",
        "services.rerank",
    },
    "clients": {"torch", "services", "gateway", "redis"},
    "deploy": {"torch", "services", "gateway"},
}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"no such room: {room}"
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_modules(path)
        for forbidden in FORBIDDEN[room]
        if name == forbidden or name.startswith(f"{forbidden}.")
    }
    assert not wrong


def test_production_code_needs_no_transformers() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for room in ("services", "gateway", "clients", "deploy")
        for path in (ROOT / room).rglob("*.py")
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
