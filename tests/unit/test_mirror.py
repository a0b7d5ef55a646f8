"""tests/unit mirrors the tree: a module's test is found by the module's path.

tests/unit/gateway/search/test_scoring.py tests gateway/search/scoring.py; services/ is left out, so that
tests/unit/runtime/test_tls.py tests services/runtime/tls.py. test_main.py tests a __main__.py.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Tests of what several modules do together, or of the whole tree.
SEVERAL = {
    "api/test_embed_stream.py",
    "engine/devices/test_cuda_fake.py",
    "engine/test_bulk_beside_interactive.py",
    "engine/test_fair_shares.py",
    "engine/test_overload.py",
    "engine/test_parity.py",
    "engine/test_threads.py",
    "runtime/test_refusal_reasons.py",
    "test_import_rules.py",
    "test_mirror.py",
    "test_readme.py",
    "training/test_checkpoints.py",
}


def unit_tests(root: Path) -> set[str]:
    unit = root / "tests" / "unit"
    return {path.relative_to(unit).as_posix() for path in unit.rglob("test_*.py")}


def has_module(root: Path, test: str) -> bool:
    name = Path(test).stem.removeprefix("test_")
    module = Path(test).with_name("__main__" if name == "main" else name)
    return any(
        (top / module).with_suffix(".py").is_file() or (top / module / "__init__.py").is_file()
        for top in (root / "services", root)
    )


def misplaced(root: Path, several: set[str]) -> set[str]:
    return {test for test in unit_tests(root) - several if not has_module(root, test)}


def stale(root: Path, several: set[str]) -> set[str]:
    """Exceptions without a test, and those that are none: the module exists."""
    return several - {test for test in unit_tests(root) if not has_module(root, test)}


def test_each_test_stands_for_a_module() -> None:
    assert not misplaced(ROOT, SEVERAL)


def test_no_exception_is_stale() -> None:
    assert not stale(ROOT, SEVERAL)


def test_a_planted_file_is_found(tmp_path: Path) -> None:
    for path in (
        "services/runtime/tls.py",
        "gateway/redis/__init__.py",
        "bench/__main__.py",
        "tests/unit/runtime/test_tls.py",
        "tests/unit/gateway/test_redis.py",
        "tests/unit/bench/test_main.py",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert not misplaced(tmp_path, set())
    (tmp_path / "tests/unit/runtime/test_auth.py").touch()
    (tmp_path / "tests/unit/test_tls.py").touch()
    assert misplaced(tmp_path, set()) == {"runtime/test_auth.py", "test_tls.py"}
    assert misplaced(tmp_path, {"runtime/test_auth.py"}) == {"test_tls.py"}
    assert stale(tmp_path, {"runtime/test_auth.py", "runtime/test_tls.py", "runtime/test_gone.py"}) == {
        "runtime/test_tls.py",
        "runtime/test_gone.py",
    }
