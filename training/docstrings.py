"""Documentation strings of PyPI wheels, for training, and of Python's standard library, for testing only."""

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

_PINNED = (
    "cherrypy==18.10.0 aiohttp==3.14.5 apscheduler==3.11.3 arrow==1.4.0 attrs==26.1.0 babel==2.18.0 "
    "beautifulsoup4==4.15.0 boltons==26.2.0 bottle==0.13.4 django==5.2.19 docutils==0.23 flask==3.1.3 "
    "ipython==9.18.1 jinja2==3.1.6 lxml==6.1.3 matplotlib==3.11.2 more-itertools==11.2.1 networkx==3.6.1 "
    "nltk==3.10.4 numpy==2.4.6 pandas==3.1.1 paramiko==5.1.0 pendulum==3.3.0 pexpect==4.9.0 pillow==13.0.0 "
    "psutil==7.2.2 python-dateutil==4.0.0 requests==2.34.2 scikit-image==0.26.0 scikit-learn==1.9.1 scipy==1.17.1 "
    "sqlalchemy==2.1.9 statsmodels==0.15.0 sympy==1.14.0 tabulate==0.10.0 toolz==1.2.0 tornado==6.6.1 "
    "trio==0.35.0 twisted==26.10.0 urllib3==2.8.0 watchdog==7.1.0 werkzeug==3.1.9 xarray==2026.9.0"
)
WHEELS = tuple(_PINNED.split())
_SKIP = re.compile(r"(^|/)(tests?|testing|_vendor|vendored|vendor|externals|extern|_distutils|backports|locale)/")
# Modules without API documentation, or with side effects on import.
_STDLIB_SKIP = {"antigravity", "this", "idlelib", "lib2to3", "test", "turtle", "turtledemo", "tkinter", "pydoc_data"}


def fetch(work: Path) -> None:
    """Downloads `WHEELS` with pip, without their dependencies and without installing them."""
    folder = work / "wheels"
    if folder.exists():
        return
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(folder), *WHEELS], check=True)


def wheels(work: Path) -> Iterator[Row]:
    """Public functions and classes of all wheels, read from the source code without importing it."""
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
    """Qualified names and documentation strings below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            text = ast.get_docstring(child)
            if text:
                yield f"{name}.{child.name}", text
            if isinstance(child, ast.ClassDef):
                yield from _documented(child, f"{name}.{child.name}")


def as_row(kind: str, group: str, title: str, text: str) -> Row | None:
    """Splits a documentation string into its summary (query) and the qualified name with the rest (doc)."""
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
