"""What a stranger does with a fresh clone: what is installed there works, from any directory."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.stacks import LocalStack, free_ports

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(300)


class Clone:
    """The files of the repository, with an environment of their own in which only the repository is installed anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "winnow"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        _copy_tracked_files(self.folder)
        self.bin = self.folder / ".venv" / "bin"
        _environment(self.folder / ".venv")

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command from a directory that has nothing to do with the clone, and return its output."""
        kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MAKEFLAGS"}}
        done = subprocess.run(
            command,
            cwd=self.elsewhere,
            env=kept | {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"} | environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def _copy_tracked_files(to: Path) -> None:
    """Take what git would give: neither stubs nor caches, but changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def _environment(folder: Path) -> None:
    """Create a virtual environment that sees the packages of ours, but not the winnow that is installed there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    ours = Path(sysconfig.get_path("purelib"))
    theirs = folder / ours.relative_to(sys.prefix)
    for package in ours.iterdir():
        if "winnow" not in package.name:  # its links, finder and metadata
            (theirs / package.name).symlink_to(package)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with `pip install -e .` done."""
    clone = Clone(tmp_path_factory.mktemp("clone"))
    assert not (clone.folder / "winnow").exists()  # the stubs are not committed
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-e", clone.folder)
    clone.run(clone.bin / "python", *install)
    return clone


def test_the_installed_command_starts_from_another_directory(clone: Clone) -> None:
    assert "usage: winnow" in clone.run(clone.bin / "winnow", "--help")
    where = clone.run(
        clone.bin / "python", "-c", "import winnow_cli, winnow.embed.v1.embed_pb2 as p; print(p.__file__)"
    )
    assert Path(where.strip()).is_relative_to(clone.folder)


def test_make_run_on_other_ports_serves_the_examples(clone: Clone) -> None:
    # make's own installing is what takes minutes; what it would install is there.
    for stamp in (clone.folder / ".venv" / ".setup", clone.folder / "winnow" / ".generated"):
        stamp.touch()
    stack = LocalStack(["make", "run", f"DATA={clone.elsewhere / 'kept'}"], free_ports(), clone.folder)
    try:
        stack.wait_for("Ctrl-C stops everything")
        address = stack.wait_for(r"gateway\s+(127\.0\.0\.1:\d+)").group(1)
        proxies = {"http_proxy": "http://127.0.0.1:1", "WINNOW_ADDRESS": address}
        out = clone.run(clone.bin / "winnow", "search", "a large bird", "--inline", "an eagle", "a cat", **proxies)
        assert "an eagle" in out
        out = clone.run(clone.bin / "python", clone.folder / "clients" / "python" / "example.py", **proxies)
        assert "shutil.rmtree" in out.splitlines()[0]
        [snippet] = re.findall(r"```python\n(.*?)```", (clone.folder / "README.md").read_text("utf-8"), re.DOTALL)
        assert "localhost:50050" in snippet
        out = clone.run(clone.bin / "python", "-c", snippet.replace("localhost:50050", address), **proxies)
        assert "shutil.rmtree" in out.splitlines()[0]
    finally:
        stack.close()


def test_stubs_of_a_changed_contract_are_found_without_installing_again(clone: Clone) -> None:
    (clone.folder / "protos" / "winnow" / "later" / "v1").mkdir(parents=True)
    (clone.folder / "protos" / "winnow" / "later" / "v1" / "later.proto").write_text(
        'syntax = "proto3";\npackage winnow.later.v1;\nmessage Later {}\n'
    )
    clone.run("make", "-C", clone.folder, "gen")
    clone.run(clone.bin / "python", "-c", "from winnow.later.v1 import later_pb2; later_pb2.Later()")


def test_a_wheel_holds_the_stubs_and_starts(clone: Clone, tmp_path: Path) -> None:
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path)
    clone.run(clone.bin / "python", *build, clone.folder)
    [wheel] = tmp_path.glob("winnow-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"winnow/{name}/v1/{name}_pb2.py" for name in ("common", "embed", "rerank", "retrieval")} <= names
    assert {f"winnow/{name}/v1/{name}_pb2_grpc.py" for name in ("embed", "rerank", "retrieval")} <= names
    assert not [name for name in names if name.startswith(("tests/", "training/", "setup.py"))]
    _environment(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    clone.run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert "usage: winnow" in clone.run(tmp_path / "venv" / "bin" / "winnow", "--help")


def test_the_build_generates_with_the_versions_that_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    exact = dict(word.split("==") for word in project["build-system"]["requires"] if "==" in word)
    assert exact == {name: pinned[name] for name in ("grpcio-tools", "mypy-protobuf")}
    # Code of a generator does not run with an older grpcio.
    assert f"grpcio>={pinned['grpcio-tools']}" in project["project"]["dependencies"]
