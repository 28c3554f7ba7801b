"""The files of the page: they come without a key, and no other file does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from r2_serve.config import ServerConfig
from r2_serve.http.api import create_app
from tests.support.scripted_backend import ScriptedBackend

UI = Path("r2_serve/http/ui")
SCRIPTS = {path.name for path in UI.glob("*.js")}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    server = ServerConfig(api_keys_env="KEYS")
    app = create_app(ScriptedBackend(), server, environment={"KEYS": "sk-one"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://r2") as client:
        yield client


async def test_address_of_the_page_leads_to_it_without_a_key(client: httpx.AsyncClient) -> None:
    reply = await client.get("/ui", follow_redirects=True)
    assert (reply.status_code, reply.url.path) == (200, "/ui/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_every_file_that_the_page_names_is_served_and_unchanged(client: httpx.AsyncClient) -> None:
    named = re.findall(r'(?:href|src)="([^":]+)"', (UI / "index.html").read_text())
    assert set(named) >= SCRIPTS, "each is asked for at once"
    for name in named:
        reply = await client.get(f"/ui/{name}")
        assert (reply.status_code, reply.content) == (200, (UI / name).read_bytes())
        again = await client.get(f"/ui/{name}", headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["none.js", "../page.py", "%2e%2e/page.py", "/etc/passwd", "vendor"])
async def test_other_files_are_not_found(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(f"/ui/{path}", headers={"authorization": "Bearer sk-one"})
    assert reply.status_code == 404


async def test_page_is_read_only(client: httpx.AsyncClient) -> None:
    assert (await client.post("/ui/app.js")).status_code == 405
