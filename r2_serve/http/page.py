"""`/ui`: the page on which people watch queries. Its files need no key; what it shows comes from the API.

The files in `ui/` are served as they are: no build step, and no request to another host, which the content
security policy forbids too. `ui/vendor/LICENSES.txt` names the libraries in it and their versions.
"""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

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


class Page:
    """The files of the page, as an ASGI application."""

    def __init__(self) -> None:
        self._files = StaticFiles(directory=Path(__file__).parent / "ui", html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._files(scope, receive, send_guarded)


def is_page(path: str) -> bool:
    """Whether `path` is that of a file of the page."""
    return path == PAGE or path.startswith(f"{PAGE}/")
