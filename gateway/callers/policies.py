"""The file of callers (TOML): what each of them may do, and how much. It is read again when it changes.

`deploy/README.md` describes it. A key that the table of a caller leaves out has its value in `[default]`; what is in
neither is not limited.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.callers.methods import GROUPS
from services.runtime.reloading_files import ReloadingFiles

_METHODS = frozenset().union(*GROUPS.values())


def _methods(names: list[str]) -> list[str]:
    """All methods that the names stand for."""
    allowed: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in _METHODS:
            close = difflib.get_close_matches(name, [*GROUPS, *_METHODS], n=1, cutoff=0.0)
            raise ValueError(f'there is no method or group "{name}"; did you mean "{close[0]}"?')
        allowed |= GROUPS.get(name, {name})
    return sorted(allowed)


class Policy(BaseModel):
    """What one caller may do. None: not limited."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    methods: Annotated[list[str], AfterValidator(_methods)] | None = None
    collections: tuple[str, ...] | None = Field(None, strict=False)
    """Beginnings of the names of collections and aliases."""
    tokens_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    burst_tokens: int | None = Field(None, ge=1)
    """How many tokens may be used at once after a pause; None: those of a second."""
    tokens_in_flight: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> Self:
        if self.burst_tokens is not None and self.tokens_per_second is None:
            raise ValueError("burst_tokens needs tokens_per_second")
        return self

    @property
    def burst(self) -> float:
        """The tokens that may be used at once, with a rate."""
        return float(self.burst_tokens or self.tokens_per_second or 0)

    def allows(self, method: str) -> bool:
        """Whether the method, by its short name, may be called."""
        return self.methods is None or method in self.methods

    def sees(self, collection: str) -> bool:
        """Whether the collection or alias may be used."""
        return self.collections is None or collection.startswith(self.collections)


class Policies:
    """The policy of each caller, from a file; without a file, nobody is limited.

    Raises OSError if the file cannot be read, ValueError with the line at fault if it is wrong. Later, a file that is
    wrong is logged, and the last good one stays in force.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file = ReloadingFiles(path, check=lambda contents: _parsed(path, contents[0])) if path else None
        self._raw = b""
        self._default, self._callers = Policy(), dict[str, Policy]()

    def of(self, name: str) -> Policy:
        """The policy of a caller; "": one without a name."""
        self._refresh()
        return self._callers.get(name, self._default)

    def lists(self, name: str) -> bool:
        """Whether the file has a table for the caller."""
        self._refresh()
        return name in self._callers

    def _refresh(self) -> None:
        if self._file is None or self._path is None:
            return
        (raw,) = self._file.read()
        if raw is not self._raw:
            self._raw = raw
            self._default, self._callers = _parsed(self._path, raw)


def _parsed(path: Path, raw: bytes) -> tuple[Policy, dict[str, Policy]]:
    """The default policy, and those of the callers that have a table. ValueError with the line at fault."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    default, callers = tables.pop("default", {}), tables.pop("callers", {})
    for key in tables:
        raise _wrong(path, text, (key,), "is neither [default] nor [callers.NAME]")
    if not isinstance(callers, dict):
        raise _wrong(path, text, ("callers",), "must be tables: [callers.NAME]")
    if "" in callers:
        raise _wrong(path, text, ("callers", ""), "has no name; callers without a name have the policy [default]")
    whole = _policy(path, text, ("default",), {}, default)
    return whole, {name: _policy(path, text, ("callers", name), default, table) for name, table in callers.items()}


def _policy(path: Path, text: str, place: tuple[str, ...], default: dict[str, Any], table: object) -> Policy:
    if not isinstance(table, dict):
        raise _wrong(path, text, place, "must be a table")
    try:
        return Policy.model_validate({**default, **table})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, Policy.model_fields, n=1, cutoff=0.0)
            raise _wrong(path, text, (*place, key), f"is no key of a policy; did you mean {close[0]}?") from None
        raise _wrong(path, text, (*place, key), first["msg"].removeprefix("Value error, ")) from None


def _wrong(path: Path, text: str, place: tuple[str, ...], message: str) -> ValueError:
    named = ".".join(f'"{part}"' if not re.fullmatch(r"[\w-]+", part) else part for part in place if part)
    return ValueError(f"{path}, line {_line(text, place)}: {named} {message}")


def _line(text: str, place: tuple[str, ...]) -> int:
    """The line of a key or a table; of the nearest table around it if it is written in another form."""
    found, depth, table = 1, 0, tuple[str, ...]()
    for number, line in enumerate(text.split("\n"), 1):
        begins = _begins(line)
        if line.lstrip().startswith("["):
            table = begins or table
            here = begins
        else:
            here = (*table, *begins) if begins else ()
        common = min(len(here), len(place))
        if common > depth and here[:common] == place[:common]:
            found, depth = number, common
    return found


def _begins(line: str) -> tuple[str, ...]:
    """The key or table that a line begins with, by its parts; () if it begins with neither."""
    head = line.strip().split("#")[0].rstrip() if line.lstrip().startswith("[") else line.partition("=")[0] + "= 0"
    try:
        tables: Any = tomllib.loads(head)
    except tomllib.TOMLDecodeError:
        return ()
    parts: list[str] = []
    while isinstance(tables, dict) and tables:
        part, tables = next(iter(tables.items()))
        parts.append(part)
    return tuple(parts)
