"""The filter language: metadata in a form that Redis reads as the caller meant it, and filters translated to match.

Redis reads a document's attributes with a small JSON reader of its own: `\\u00fc` is not decoded, keys are compared by
their bytes. Its filters decode no escapes in strings either, and their selectors take ASCII letters, digits, "_", "-"
only. So neither side gets anything to decode: attributes are JSON without escapes, and the same two functions write
the strings and keys of attributes and of filters:

    string   as UTF-8; quotes, the backslash and control characters as one private code point each, so that a substring
             of a string is a substring of its stored form; those private code points themselves as three
    key      a-z and 0-9 as they are, every other byte of its UTF-8 as "_" and two hex digits; the empty key as "_"

Both are one to one. The rest of a filter is passed on unchanged: Redis checks the grammar.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from gateway.index.documents import parse_metadata

_PRIVATE = 0x10FF00  # the last 256 code points of Unicode
_LEAD, _DIGIT = chr(_PRIVATE + 0x80), _PRIVATE + 0xC0
_STORED = {code: chr(_PRIVATE + code) for code in (*range(0x20), ord('"'), ord("'"), ord("\\"), 0x7F)} | {
    _PRIVATE + low: _LEAD + chr(_DIGIT + (low >> 4)) + chr(_DIGIT + 0x10 + (low & 15)) for low in range(0x100)
}
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")

# The name of a selector may have letters, digits and marks of any script: everything outside ASCII but white space.
_TOKEN = re.compile(
    r"""
    (?P<quoted_key>\.\[\s*(?P<key>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\])
  | (?P<selector>\.(?P<name>(?:[A-Za-z0-9_-]|[^\x00-\x7f\s])+))
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)
  | (?P<word>[A-Za-z]+)
  | (?P<other>[\x20-\x7e\t\n\r])(?<!["'])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "'": "'", "\\": "\\", "/": "/"}
_BOOLEANS = {"true": "1", "false": "0"}  # how Redis reads a boolean of the attributes
_MOST_DIGITS = 250  # of a number that Redis reads
_SHOWN = 40


class FilterError(ValueError):
    """What is wrong with a filter, quoting the caller's source, and how to correct it."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A translated filter. `places`: the positions of its tokens, in bytes of `redis` and characters of `source`."""

    source: str
    redis: bytes
    places: tuple[tuple[int, int], ...]

    def refused(self, error: str) -> str:
        """The message for the caller. Redis' `error` quotes the rest of the translation."""
        left = error.partition("near: ")[2].encode("utf-8", "surrogateescape")
        begin = len(self.redis) - len(left)
        near = next((there for here, there in reversed(self.places) if here <= begin), 0) if left else 0
        where = f" near {_shown(self.source[near:])}" if near else ""
        return f'does not parse{where}; compare selectors and literals, as in .year >= 1980 and .lang in ["en", "de"]'


def translate(source: str) -> Filter:
    """Translates a filter. Raises FilterError for what is not part of the language."""
    written = bytearray()
    places: list[tuple[int, int]] = []
    at, last = 0, ""
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise FilterError(_unknown(source[at:]))
        kind = match.lastgroup or ""
        if kind in {"selector", "quoted_key"} and last in {"selector", "quoted_key"}:
            raise FilterError(
                f"has a path near {_shown(source[at:])}; only top-level keys can be filtered on, and a key with a "
                'dot is written .["a.b"]'
            )
        places.append((len(written), at))
        written += _translated(kind, match)
        at, last = match.end(), kind
    return Filter(source, bytes(written), tuple(places))


def attributes(metadata: str) -> bytes:
    """Valid metadata of a document as the attributes for filters; empty for none."""
    members = []
    for key, value in parse_metadata(metadata).items():
        stored = _attribute(value)
        if stored is not None:
            members.append(b'"' + _key(key) + b'":' + stored)
    return b"{" + b",".join(members) + b"}" if members else b""


def _attribute(value: object) -> bytes | None:
    """The stored form of a value; None for an object, which filters cannot use."""
    match value:
        case None:
            return b"null"
        case bool():
            return b"true" if value else b"false"
        case float():
            return repr(value).encode()
        case str():
            return _string(value)
        case list():
            seen = (_attribute(item) for item in value if isinstance(item, bool | float | str))
            return b"[" + b",".join(item for item in seen if item is not None) + b"]"
        case _:
            return None


def _translated(kind: str, match: re.Match[str]) -> bytes:
    text = match.group()
    match kind:
        case "quoted_key":
            return b"." + _key(_unquoted(match.group("key")))
        case "selector":
            return b"." + _key(match.group("name"))
        case "string":
            return _string(_unquoted(text))
        case "number":
            return _number(text)
        case "word":
            return _BOOLEANS.get(text, text).encode()
        case _:
            return text.encode()


def _string(value: str) -> bytes:
    # JSON and filters may contain half a surrogate pair, which is not valid in UTF-8; Redis accepts it.
    return b'"' + value.translate(_STORED).encode("utf-8", "surrogatepass") + b'"'


def _key(key: str) -> bytes:
    code = key.encode("utf-8", "surrogatepass")
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"_%02x" % byte for byte in code) or b"_"


def _unquoted(literal: str) -> str:
    def decoded(match: re.Match[str]) -> str:
        code, letter = match.groups()
        if code:
            return chr(int(code, 16))
        if letter not in _ESCAPES:
            raise FilterError(
                f"has the unknown escape {_shown(match.group())} in a string; write \\\\ for a backslash. Known "
                "are \\\" \\' \\\\ \\/ \\n \\r \\t \\b \\f and \\u with four hex digits"
            )
        return _ESCAPES[letter]

    text = _ESCAPE.sub(decoded, literal[1:-1])
    # Two escapes of a surrogate pair are one character, as in JSON.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _number(text: str) -> bytes:
    """Without a sign in the exponent and with at most 255 characters, since Redis reads no other number."""
    if len(text) <= _MOST_DIGITS and "+" not in text and "-" not in text:
        return text.encode()
    value = repr(float(text))
    plain = f"{Decimal(value):f}" if "e-" in value else value.replace("e+", "e")
    if len(plain) > _MOST_DIGITS or plain == "inf":
        raise FilterError(f"has the number {_shown(text)}, which is out of range; use one from 1e-200 to 1e308")
    return plain.encode()


def _unknown(rest: str) -> str:
    if rest[0] in "\"'":
        return f"has an unterminated string: {_shown(rest)}; close it with {rest[0]}"
    return f'has {_shown(rest[0])} outside of a string; quote strings, and write other keys as .["any key"]'


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return short if short.isprintable() else ascii(short)
