"""The page at `/`: static files of the wheel, each with headers that let nothing else into it."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a newer version's files must not meet an older one's
}
_INDEX = "index.html"
_KINDS = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""Of the files: tables of the machine differ, and a browser runs no module of another type."""


def page_routes() -> list[Route]:
    """Routes of the page and of all that it loads; addresses in it are relative, so that a proxy may move it."""
    folder = files(__package__) / "static"
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    return [
        Route("/", _static(_INDEX, contents.pop(_INDEX))),
        *(Route(f"/page/{name}", _static(name, content)) for name, content in sorted(contents.items())),
    ]


def _static(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    kind = _KINDS[PurePath(name).suffix]

    async def static(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    return static
