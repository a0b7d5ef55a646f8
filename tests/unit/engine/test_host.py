"""What a process may use of its host."""

from pathlib import Path

import pytest

from services.engine import host

GB = 1 << 30


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup's folder; the host around it has 8 GB free."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return tmp_path


def test_free_memory_is_the_machines_without_a_limit(container: Path) -> None:
    assert host.free_memory() == 8 * GB
    (container / "memory.max").write_text("max\n")
    (container / "memory.current").write_text("5\n")
    assert host.free_memory() == 8 * GB


@pytest.mark.parametrize(("limit", "used", "free"), [(4, 1, 3), (16, 1, 8), (1, 2, 0)])
def test_free_memory_is_what_the_container_may_still_take(container: Path, limit: int, used: int, free: int) -> None:
    (container / "memory.max").write_text(f"{limit * GB}\n")
    (container / "memory.current").write_text(f"{used * GB}\n")
    assert host.free_memory() == free * GB


def test_free_memory_is_nothing_where_the_system_does_not_say(container: Path) -> None:
    (container / "meminfo").unlink()
    assert host.free_memory() == 0


@pytest.mark.parametrize(("quota", "cpus"), [("100000 100000", 1), ("50000 100000", 1)])
def test_a_quota_counts_as_cpus(container: Path, quota: str, cpus: int) -> None:
    (container / "cpu.max").write_text(quota)
    assert host.cpus() == cpus
