"""The playground: a page that talks to this server, from the package's data. It holds no data of its own."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.responses import Response

if TYPE_CHECKING:
    from importlib.abc import Traversable

_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
# What a model writes is not trusted: even if it became part of the page, it could load and send nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def add_playground(app: FastAPI) -> None:
    """Serve the page at "/"."""
    for path, file in _files().items():
        _serve(app, path, file.read_bytes(), _TYPES[_ending(file)])


def paths() -> Collection[str]:
    """Return the paths of the page, for which no key is needed."""
    return [*_files()]


def _files() -> dict[str, Traversable]:
    files = resources.files("specport.serve").joinpath("page").iterdir()
    return {
        "/" if file.name == "index.html" else f"/page/{file.name}": file
        for file in files
        if _ending(file) in _TYPES
    }


def _ending(file: Traversable) -> str:
    return "." + file.name.rpartition(".")[2]


def _serve(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    app.add_api_route(path, file, methods=["GET", "HEAD"])
