"""What a stranger does with a fresh clone: what is installed there works, from any directory."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.stacks import LocalStack, free_ports

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = Path(sysconfig.get_path("purelib"))
pytestmark = pytest.mark.timeout(300)


class Clone:
    """The files of the repository, with an environment of their own in which only the repository is installed anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "winnow"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        _copy_tracked_files(self.folder)
        self.bin = self.folder / ".venv" / "bin"
        # Our packages, but not the winnow that is installed there: its links, finder and metadata.
        _environment(self.folder / ".venv", (path.name for path in PACKAGES.iterdir() if "winnow" not in path.name))

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


def _environment(folder: Path, entries: Iterable[str]) -> None:
    """Create a virtual environment that sees these entries of our site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    packages = folder / PACKAGES.relative_to(sys.prefix)
    for entry in entries:
        (packages / entry).symlink_to(PACKAGES / entry)


def _entries_of(requirements: Iterable[str]) -> set[str]:
    """Return the entries of our site-packages that hold these packages and all that they require in turn."""
    waiting = [Requirement(requirement) for requirement in requirements]
    names, entries = set(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in names or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        distribution = importlib.metadata.distribution(name)
        entries |= {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        waiting += map(Requirement, distribution.requires or ())
    return entries


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
        snippets = re.findall(r"```python\n(.*?)```", (clone.folder / "README.md").read_text("utf-8"), re.DOTALL)
        [snippet] = [each for each in snippets if "localhost:50050" in each]  # those over HTTP have tests of their own
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


@pytest.fixture(scope="module")
def wheel(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip wheel` makes of the clone."""
    return _wheel(clone, clone.folder, tmp_path_factory.mktemp("wheel"))


def _wheel(clone: Clone, source: Path, to: Path) -> Path:
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", to)
    clone.run(clone.bin / "python", *build, source)
    [wheel] = to.glob("winnow_client-*.whl")
    return wheel


@pytest.fixture(scope="module")
def caller(clone: Clone, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment of a caller: the wheel, what it requires, and what a type checker wants to know of that."""
    # Nothing else, which would be installed through the links into our own packages.
    assert all(name.startswith("winnow") for name in zipfile.ZipFile(wheel).namelist())
    folder = tmp_path_factory.mktemp("caller")
    _environment(folder, _entries_of([*PROJECT["project"]["dependencies"], "types-grpcio", "types-protobuf", "pip"]))
    clone.run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return folder


def test_a_wheel_holds_the_stubs_and_starts(clone: Clone, wheel: Path, caller: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"winnow/{name}/v1/{name}_pb2.py" for name in ("common", "embed", "rerank", "retrieval")} <= names
    assert {f"winnow/{name}/v1/{name}_pb2_grpc.py" for name in ("embed", "rerank", "retrieval")} <= names
    assert not [name for name in names if name.startswith(("tests/", "training/", "setup.py"))]
    assert "usage: winnow" in clone.run(caller / "bin" / "winnow", "--help")


def test_a_wheel_puts_nothing_but_winnow_into_site_packages(caller: Path) -> None:
    [packages] = caller.glob("lib/python*/site-packages")
    installed = {path.name for path in packages.iterdir() if not path.is_symlink()}
    version = PROJECT["project"]["version"]
    assert installed == {"winnow", "winnow_cli", f"winnow_client-{version}.dist-info"}


def test_the_example_of_python_needs_no_more_than_the_wheel(clone: Clone, caller: Path) -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'clients' / 'python' / 'example.py')!r})"  # imports, no calls
    clone.run(caller / "bin" / "python", "-c", code)


def test_a_type_checker_finds_the_types_of_the_wheel(clone: Clone, caller: Path, tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    # With --strict, an ignored error that does not occur is an error.
    snippet.write_text(
        "import grpc\n"
        "from winnow.retrieval.v1 import retrieval_pb2, retrieval_pb2_grpc\n"
        "retrieval = retrieval_pb2_grpc.RetrievalServiceStub(grpc.insecure_channel('localhost:50050'))\n"
        "found = retrieval.Search(retrieval_pb2.SearchRequest(query='a folder'), timeout=10)\n"
        "score: float = found.hits[0].score\n"
        "text: bytes = found.hits[0].text  # type: ignore[assignment]\n"
        "retrieval_pb2.SearchRequest(query=1)  # type: ignore[arg-type]\n"
    )
    mypy = ("-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", tmp_path / "cache")
    clone.run(sys.executable, *mypy, "--python-executable", caller / "bin" / "python", snippet)


def test_a_wheel_of_a_source_distribution_holds_the_same(clone: Clone, wheel: Path, tmp_path: Path) -> None:
    code = "import os, sys, setuptools.build_meta as it; os.chdir(sys.argv[1]); it.build_sdist(sys.argv[2])"
    clone.run(clone.bin / "python", "-c", code, clone.folder, tmp_path)
    [source] = tmp_path.glob("winnow_client-*.tar.gz")
    again = _wheel(clone, source, tmp_path)
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_build_generates_with_the_versions_that_are_pinned() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    exact = dict(word.split("==") for word in PROJECT["build-system"]["requires"] if "==" in word)
    assert exact == {name: pinned[name] for name in ("grpcio-tools", "mypy-protobuf")}
    # Code of a generator does not run with an older grpcio.
    assert f"grpcio>={pinned['grpcio-tools']}" in PROJECT["project"]["dependencies"]
