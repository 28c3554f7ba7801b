"""The pages and figures of all runs on loopback, with an index: files of known kinds below one directory.

Nothing outside the directory is served, also not by a link or a path with `..`, and no page may run a script
or ask another host, since a page may be foreign.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from r2_serve.errors import counted
from r2_serve.lab.reports.html import Html, document, note, small, table
from r2_serve.lab.results.finding import Search, find_runs
from r2_serve.lab.results.listing import COLUMNS, Wanted, cells
from r2_serve.lab.results.record import FoundRun, Kind

SERVED = {".html", ".svg", ".pdf", ".png", ".csv", ".tex", ".json"}
"""Kinds of files that are served: pages, figures, tables and figures as JSON."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
HOW_TO_MAKE_A_PAGE: Mapping[Kind, str] = {
    "eval": "r2-serve eval report",
    "replay": "r2-serve replay BOOK --html FILE --json",
}
"""The command that writes the page of a run which has none yet; the run's path follows it."""
FILES = "/files"
_STYLE = """<style>
td { vertical-align: top; }
td:nth-child(1), td:nth-child(n+4) { white-space: normal; min-width: 9rem; }
</style>"""
"""Long texts break into lines, which are no shorter than a few words on a phone."""


class RunFiles(StaticFiles):
    """Files of the kinds in `SERVED`, hidden ones aside."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).suffix not in SERVED or any(part.startswith(".") for part in parts):
            return "", None
        return super().lookup_path(path)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def pages_app(root: Path) -> Starlette:
    """The index and the files below `root`. The index is made anew for each request."""

    def index(request: Request) -> HTMLResponse:
        return HTMLResponse(index_page(find_runs(root)), headers=HEADERS)

    files = RunFiles(directory=root, follow_symlink=False)
    return Starlette(
        routes=[Route("/", index), Mount(FILES, files)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def page_path(page: str) -> str:
    """The path of a page in the address of the server."""
    return f"{FILES}/{quote(page)}"


def index_page(search: Search) -> str:
    """Every run with its figures and pages, the newest first."""
    runs = Wanted().of(search.runs)
    styles = ["beaten" if run.state == "broken" else "" for run in runs]
    found = table(COLUMNS, (_row(run, search.root) for run in runs), *COLUMNS, styles=styles)
    count = f"{counted(len(runs), 'run')}." if runs else "No run yet. Try: r2-serve demo"
    notes = "".join(map(note, (*search.notes, count)))
    return document("Runs", f"{_STYLE}{small(str(search.root.resolve()))}{found}{notes}")


def _row(run: FoundRun, root: Path) -> tuple[str, ...]:
    path, *texts = cells(run)
    links = " · ".join(f'<a href="{page_path(page)}">{escape(_name(page))}</a>' for page in run.pages)
    how = HOW_TO_MAKE_A_PAGE.get(run.kind) if run.kind and run.state != "broken" else None
    if not links and how is not None:
        links = f"no page yet: {escape(how)} {escape(str(root / path))}"
    return Html(f'<b>{escape(path)}</b><br><span class="small">{links}</span>'), *texts


def _name(page: str) -> str:
    return PurePosixPath(page).name
