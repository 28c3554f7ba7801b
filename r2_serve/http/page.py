"""`/ui`: the page on which people watch queries. Its files need no key; what it shows comes from the API.

The files in `ui/` are served as they are: no build step, and no request to another host, which the content
security policy forbids too. `ui/vendor/LICENSES.txt` names the libraries in it and their versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PAGE = "/ui"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Inline styles are places and sizes of bars, which scripts of ours set."""
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}

_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}


@dataclass(frozen=True)
class _File:
    body: bytes
    headers: Mapping[str, str]


class Page:
    """The files of the page, as an ASGI application: 180 kB in memory, so that no thread reads a disk."""

    def __init__(self) -> None:
        root = Path(__file__).parent / "ui"
        paths = (path for path in root.rglob("*") if path.is_file())
        self._files = {path.relative_to(root).as_posix(): _read(path) for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).lstrip("/")
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        file = self._files.get(name or "index.html")
        if file is None:
            raise HTTPException(404, f"the page has no file {name[:100]!r}")
        is_known = Headers(scope=scope).get("if-none-match") == file.headers["etag"]
        response = Response(b"" if is_known else file.body, 304 if is_known else 200, file.headers)
        await response(scope, receive, send)


def _read(path: Path) -> _File:
    body, kind = path.read_bytes(), _KINDS[path.suffix]
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(body, {**_HEADERS, "content-type": f"{kind}; charset=utf-8", "etag": etag})


def is_page(path: str) -> bool:
    """Whether `path` is that of a file of the page."""
    return path == PAGE or path.startswith(f"{PAGE}/")
