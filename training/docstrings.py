"""Documentation strings: of PyPI wheels, to train on; of Python's standard library, only ever to test on."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from training.rows import Row

WHEELS = (
    "aiohttp apscheduler arrow attrs babel beautifulsoup4 boltons bottle cherrypy django docutils flask ipython "
    "jinja2 lxml matplotlib more-itertools networkx nltk numpy pandas paramiko pendulum pexpect pillow psutil "
    "python-dateutil requests scikit-image scikit-learn scipy sqlalchemy statsmodels sympy tabulate toolz tornado "
    "trio twisted urllib3 watchdog werkzeug xarray"
).split()
_SKIP = re.compile(r"(^|/)(tests?|testing|_vendor|vendored|vendor|externals|extern|_distutils|backports|locale)/")
# Not documentation of an API, or with an effect on import.
_STDLIB_SKIP = {"antigravity", "this", "idlelib", "lib2to3", "test", "turtle", "turtledemo", "tkinter", "pydoc_data"}


def fetch(work: Path) -> None:
    """Download ``WHEELS`` with pip, without their dependencies and without installing them."""
    folder = work / "wheels"
    if folder.exists():
        return
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(folder), *WHEELS], check=True)


def wheels(work: Path) -> Iterator[Row]:
    """Public functions and classes of every wheel, read from the source without importing it."""
    seen: set[str] = set()
    for path in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith(".py") or _SKIP.search(name):
                    continue
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        tree = ast.parse(archive.read(name))
                except (SyntaxError, ValueError):
                    continue
                module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                for title, text in _documented(tree, module):
                    row = as_row("docstring", path.name.split("-")[0].lower(), title, text)
                    if row and row.doc not in seen:
                        seen.add(row.doc)
                        yield row


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Qualified names and documentation strings below ``node``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            text = ast.get_docstring(child)
            if text:
                yield f"{name}.{child.name}", text
            if isinstance(child, ast.ClassDef):
                yield from _documented(child, f"{name}.{child.name}")


def as_row(kind: str, group: str, title: str, text: str) -> Row | None:
    """Split a documentation string into its summary (query) and the qualified name with the rest (doc)."""
    text = inspect.cleandoc(text)
    first, _, rest = text.partition("\n\n")
    if re.match(r"^\.?[\w.]+\(.*\)( ->.*)?$", first, re.S) and rest:
        first, _, rest = rest.partition("\n\n")
    sentence = re.match(r"(.+?[.!?])(?:\s|$)(.*)", " ".join(first.split()), re.S)
    query, more = (sentence.group(1), sentence.group(2)) if sentence else (" ".join(first.split()), "")
    query = query.strip().rstrip(".")
    rest = (more.strip() + "\n" + rest).strip()
    if not (12 <= len(query) <= 220 and len(rest) >= 60 and query.isascii()) or ":param" in query or ">>>" in query:
        return None
    return Row(kind, group, title, query, f"{title}\n{rest}")


def standard_library() -> Iterator[tuple[str, str]]:
    """Qualified names and documentation strings of this Python's public standard library, by import."""
    seen: set[str] = set()
    for module_name in sorted(_stdlib_modules()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(module_name)
        except Exception:  # a module for another platform, or one that needs what is not there
            continue
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for name in sorted(public):
            member = getattr(module, name, None)
            owner = getattr(member, "__module__", None) or module_name
            if not (inspect.isclass(member) or inspect.isroutine(member)):
                continue
            if getattr(module, "__all__", None) is None and owner.lstrip("_") != module_name.lstrip("_"):
                continue
            yield from _members(f"{module_name}.{name}", member, seen)


def _stdlib_modules() -> Iterator[str]:
    for name in sys.stdlib_module_names:
        if name.startswith("_") or name in _STDLIB_SKIP:
            continue
        yield name
        try:
            package = importlib.import_module(name)
        except Exception:
            continue
        for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
            if not info.name.startswith("_") and info.name not in ("test", "tests"):
                yield f"{name}.{info.name}"


def _members(title: str, member: object, seen: set[str]) -> Iterator[tuple[str, str]]:
    own = inspect.getdoc(member) if not inspect.isclass(member) else member.__doc__
    if isinstance(own, str) and own and own not in seen:
        seen.add(own)
        yield title, inspect.cleandoc(own)
    if inspect.isclass(member):
        for name, value in sorted(vars(member).items()):
            if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                text = getattr(value, "__doc__", None) or getattr(getattr(value, "__func__", None), "__doc__", None)
                if isinstance(text, str) and text and text not in seen:
                    seen.add(text)
                    yield f"{title}.{name}", inspect.cleandoc(text)


def standard_library_rows() -> Iterator[Row]:
    """The second test set: summary against qualified name and the rest."""
    for title, text in standard_library():
        row = as_row("stdlib", title.split(".")[0], title, text)
        if row:
            yield row
