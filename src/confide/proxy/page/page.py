"""The page's files over HTTP, with headers that hold the browser to them.

There is nothing of anybody's in them. What the page shows it asks the proxy's own endpoints for, with a token that is
in the part of its address that browsers do not send: see `address`. Unlike a cookie, that reaches no other program on
this machine, whatever its port.
"""

from functools import cache
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PREFIX: Final = "/page/"
_INDEX: Final = "index.html"
HEADERS: Final = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            # No text becomes markup or code, whatever a script of ours does by mistake.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), clipboard-write=(self)",
    "cache-control": "no-store",
}
"""Of every file."""


def is_file(path: str) -> bool:
    """Whether this path is a file of the page, which is the same for everybody."""
    return path == "/" or path.startswith(_PREFIX)


def address(url: str, token: str) -> str:
    """Where the page of the proxy at this URL is opened. What follows # stays in the browser."""
    return f"{url}/#token={token}"


def page_routes() -> list[Route]:
    """The page at /, and its files."""
    return [Route("/", _index), Route(f"{_PREFIX}{{name}}", _file)]


async def _index(_request: Request) -> Response:
    return _answer(_INDEX)


async def _file(request: Request) -> Response:
    return _answer(request.path_params["name"])


def _answer(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        return Response("There is no such file of the page.", 404, HEADERS, "text/plain; charset=utf-8")
    return Response(content, headers=HEADERS, media_type=_KINDS[name.rpartition(".")[2]])


@cache
def _files() -> dict[str, bytes]:
    """All of them by name: what is asked for is looked up here and never on disk."""
    folder = files(__package__) / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.rpartition(".")[2] in _KINDS}
