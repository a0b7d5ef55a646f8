"""The demo's documents: the docstrings of the running interpreter's standard library."""

import importlib
import inspect
import json
import pkgutil
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

# Modules whose import has side effects (a browser, a printed poem, a window), and modules without useful documentation.
SKIPPED = {"antigravity", "ensurepip", "idlelib", "lib2to3", "test", "tests", "this", "tkinter", "turtle", "turtledemo"}
# Modules that readers know by another name.
PUBLIC_NAMES = {"builtins": "", "posix": "os", "nt": "os", "posixpath": "os.path", "ntpath": "os.path"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented module, class, function or method. `name` is its public import path."""

    name: str
    kind: str
    text: str

    @property
    def metadata_json(self) -> str:
        """The metadata for filters."""
        return json.dumps({"module": self.name.split(".", maxsplit=1)[0], "kind": self.kind})


def standard_library() -> list[Entry]:
    """The documentation of the standard library, one entry per documented object, sorted by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules warn on import and on attribute access
        return _collect()


def _collect() -> list[Entry]:
    found: dict[str, Entry] = {}
    seen: set[int] = set()
    modules = list(_modules())
    # Two passes: an object belongs to the module that defines it, or else to the first that exports it.
    for owned in (True, False):
        for module in modules:
            for name, kind, obj in _members(module):
                if _owns(module, obj) == owned and id(obj) not in seen and name not in found:
                    text = _text(name, kind, obj)
                    if text:
                        found[name] = Entry(name, kind, text)
                        seen.add(id(obj))
    return [found[name] for name in sorted(found)]


def _modules() -> Iterator[types.ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in SKIPPED:
            continue
        module = _import(name)
        if module is None:
            continue
        yield module
        for info in sorted(pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."), key=lambda i: i.name):
            if any(part.startswith("_") or part in SKIPPED for part in info.name.split(".")):
                continue
            child = _import(info.name)
            if child is not None:
                yield child


def _import(name: str) -> types.ModuleType | None:
    """Imports a module without output. Returns None if it cannot be imported, for example on another platform."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit):
            return None


def _members(module: types.ModuleType) -> Iterator[tuple[str, str, object]]:
    """Yields (public name, kind, object) of a module, its public functions and classes, and their methods."""
    public = PUBLIC_NAMES.get(module.__name__, module.__name__)
    yield public or module.__name__, "module", module
    for attribute, obj in sorted(vars(module).items()):
        name = f"{public}.{attribute}".lstrip(".")
        if attribute.startswith("_") or _foreign(obj, module):
            continue
        if inspect.isclass(obj):
            yield name, "class", obj
            for method_name, method in sorted(vars(obj).items()):
                if not method_name.startswith("_") and (callable(method) or hasattr(method, "__get__")):
                    yield f"{name}.{method_name}", "method", getattr(method, "__func__", method)
        elif inspect.isroutine(obj):
            yield name, "function", obj


def _owns(module: types.ModuleType, obj: object) -> bool:
    return (getattr(obj, "__module__", None) or module.__name__) == module.__name__


def _foreign(obj: object, module: types.ModuleType) -> bool:
    """Whether `obj` is defined in another public module, which exports it itself."""
    owner = getattr(obj, "__module__", None)
    return bool(owner) and not _owns(module, obj) and not str(owner).startswith("_") and owner != "builtins"


def _text(name: str, kind: str, obj: object) -> str | None:
    """`name(signature)`, then the docstring. None if the object has no docstring."""
    doc = getattr(obj, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip():
        return None
    signature = ""
    if kind != "module" and callable(obj):
        try:
            signature = str(inspect.signature(obj))
        except Exception:  # signatures of C functions are evaluated; some refer to names that this build lacks
            signature = ""
    if len(signature) > 120 or " at 0x" in signature:
        signature = "(…)"
    return f"{name}{signature}\n{inspect.cleandoc(doc)}"
