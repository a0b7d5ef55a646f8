"""The files of the playground, read once, under a Content-Security-Policy that allows nothing from elsewhere."""

import mimetypes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).parent / "page"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes(folder: Path = FOLDER) -> list[BaseRoute]:
    """A route for each file: index.html at /, the others by their names."""
    return [_route(path) for path in sorted(folder.glob("*")) if path.is_file()]


def _route(path: Path) -> BaseRoute:
    data = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    async def serve(request: Request) -> Response:
        return Response(data, headers=HEADERS, media_type=kind)

    return Route("/" if path.name == "index.html" else f"/{path.name}", serve, methods=["GET"])
