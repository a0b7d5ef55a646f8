"""Redis URLs as settings: what redis-py would refuse later, or misread, is refused at the start.

redis-py's own parser reads them. Neither messages nor `str()` of a URL contain its credentials.
"""

import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from redis.asyncio.connection import Connection, parse_url

_SCHEMES = ("redis", "redis+cluster", "rediss", "rediss+cluster", "unix")
_MOST_DATABASES = 2**31 - 1
# Options that the gateway sets by its own settings.
_OURS = {
    "max_connections",
    "protocol",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
    "timeout",
}
_HOST = re.compile(r"[\w.:%-]*")
_DATABASE = re.compile(r"/?[0-9]*")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODE = (
    'percent-encode special characters in user and password ("/" as %2F, "@" as %40, "#" as %23, "?" as %3F, '
    '"%" as %25)'
)


class RedisUrl:
    """A valid URL. Like `SecretStr`, it hides its credentials from `str()` and `repr()`."""

    def __init__(self, url: str) -> None:
        """Raises ValueError, whose message does not quote the URL."""
        url = url.strip()
        self._url = url
        self._shown = _checked(url)

    def get_secret_value(self) -> str:
        """The URL with its credentials."""
        return self._url

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"RedisUrl('{self._shown}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisUrl) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)


def _checked(url: str) -> str:
    """The URL without its credentials."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        raise ValueError(f"must begin with one of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
    plain = scheme.lower().removesuffix("+cluster") + url[len(scheme) :]
    try:
        parts, port = urlsplit(plain), urlsplit(plain).port
        options = dict(parse_url(plain))
    except ValueError:
        raise ValueError(f"is not a valid URL: the port must be a number; {_ENCODE}") from None
    _check_parts(parts, port)
    _check_query(parts, options)
    _check_database(parts, options, clustered=scheme.lower().endswith("+cluster"))
    return _shown(scheme.lower(), parts)


def _check_parts(parts: SplitResult, port: int | None) -> None:
    if parts.fragment or "#" in parts.geturl():
        raise ValueError(f'has a "#": {_ENCODE}')
    if _BROKEN_ESCAPE.search(parts.netloc + parts.query) or re.search(r"\s", parts.geturl()):
        raise ValueError(f'has white space, or a "%" without two hex digits: {_ENCODE}')
    if port == 0:
        raise ValueError("has port 0")
    if not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError(f"has an invalid host name; {_ENCODE}")
    if parts.scheme == "unix" and (parts.hostname or not parts.path.strip("/")):
        raise ValueError("must have the full path of the socket, as in unix:///run/redis.sock")


def _check_query(parts: SplitResult, options: dict[str, Any]) -> None:
    try:
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f'has an option after "?" that is not name=value: {_ENCODE}') from None
    names = [name for name, _ in given]
    if len(set(names)) < len(names) or any(not value for _, value in given):
        raise ValueError('has an option after "?" that is repeated, or has no value')
    if "+" in parts.query:
        raise ValueError('has a "+" after "?", which means a space: write %2B or %20')
    ours = sorted(_OURS.intersection(names))
    if ours:
        raise ValueError(f"has the option {ours[0]}, which the gateway sets itself: see GATEWAY_INDEX_TIMEOUT_MS")
    try:
        _connection(options)
    except Exception:  # redis-py raises various errors for a bad option
        raise ValueError('has an unknown option after "?", or an invalid value of one') from None


def _connection(options: dict[str, Any]) -> Connection:
    """Makes a connection object, in which redis-py checks most options; nothing is connected."""
    kind = options.get("connection_class", Connection)
    made: Connection = kind(**{name: value for name, value in options.items() if name != "connection_class"})
    return made


def _check_database(parts: SplitResult, options: dict[str, Any], clustered: bool) -> None:
    if parts.scheme != "unix":
        if not _DATABASE.fullmatch(parts.path):
            raise ValueError(f"has a path that is not the number of a database; {_ENCODE}")
        if parts.path.strip("/") and int(parts.path.strip("/")) != options["db"]:
            raise ValueError("names two different databases, in its path and as db")
    if not 0 <= options.get("db", 0) <= _MOST_DATABASES:
        raise ValueError("has a database number that is out of range")
    if clustered and options.get("db", 0):
        raise ValueError("has a database other than 0, but a cluster has only that one")


def _shown(scheme: str, parts: SplitResult) -> str:
    _, at, place = parts.netloc.rpartition("@")
    query = "&".join(f"{name}={value if name == 'db' else '***'}" for name, value in parse_qsl(parts.query))
    return f"{scheme}://{'***@' if at else ''}{place}{parts.path}{'?' if query else ''}{query}"
