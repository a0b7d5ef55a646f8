"""Bearer tokens from a file, which is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from services.runtime.reloading_files import ReloadingFiles

VISIBLE = re.compile(r"[!-~]*")
"""The characters of a bearer token: those that a header can carry, without white space."""


class BearerTokens:
    """Bearer tokens in UTF-8: "token" or "name token" a line; empty lines, and those that begin with #, are skipped.

    Raises OSError if the file cannot be read, ValueError if it holds no token or a malformed line.
    """

    def __init__(self, path: Path) -> None:
        self._file = ReloadingFiles(path, check=lambda contents: _names(path, contents[0]))
        self._path = path
        self._raw = b""
        self._names: dict[bytes, str] = {}
        self._refresh()

    def name_of(self, token: str) -> str | None:
        """The name of a token ("" if it has none); None for an unknown token.

        Digests of equal length are compared in constant time, against all tokens, so the time taken reveals nothing.
        """
        self._refresh()
        given, found = _digest(token.strip()), None
        for known, name in self._names.items():
            if hmac.compare_digest(given, known):
                found = name
        return found

    def _refresh(self) -> None:
        (raw,) = self._file.read()
        if raw is not self._raw:
            self._raw, self._names = raw, _names(self._path, raw)


def _names(path: Path, raw: bytes) -> dict[bytes, str]:
    """Digest of a token → its name. ValueError with the line's number, never its contents."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        *name, token = line.replace("\t", " ").split(" ")
        name = [word for word in name if word]
        if len(name) > 1 or not all(word.isprintable() for word in name) or not VISIBLE.fullmatch(token):
            raise ValueError(f'{path}, line {number}: must be "token" or "name token", the token of visible ASCII')
        names[_digest(token)] = name[0] if name else ""
    if not names:
        raise ValueError(f"{path} holds no token; every call would be refused")
    return names


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
