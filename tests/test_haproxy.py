"""The configuration that Serve writes for HAProxy, before HAProxy reads it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from r2_serve.haproxy import narrowed, private_environment
from r2_serve.local_cluster import PORTS, free_port

WRITTEN_BY_SERVE = """global
    stats socket /tmp/haproxy-serve/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
frontend prometheus
    bind :9101
    http-request use-service prometheus-exporter if { path /metrics }
frontend http_frontend
    bind 10.0.0.5:8000
    default_backend default_backend
backend http-r2
    server replica 127.0.0.1:30000 check
frontend grpc_frontend
    bind *:9000 proto h2
listen stats
  bind *:8404
  stats enable
"""


def test_only_the_endpoint_keeps_its_address() -> None:
    changed = dict(zip(WRITTEN_BY_SERVE.splitlines(), narrowed(WRITTEN_BY_SERVE).splitlines(), strict=True))
    assert {old: new for old, new in changed.items() if old != new} == {
        "    stats socket /tmp/haproxy-serve/admin.sock mode 666 level admin expose-fd listeners": (
            "    stats socket /tmp/haproxy-serve/admin.sock mode 600 level admin expose-fd listeners"
        ),
        "    bind :9101": "    bind 127.0.0.1:9101",
        "  bind *:8404": "  bind 127.0.0.1:8404",
    }


def test_no_option_stays_that_hides_a_client_who_left() -> None:
    deaf = "defaults\n    option abortonclose\n    option splice-request\n    option splice-response\nbackend b\n    http-reuse always\n"
    assert narrowed(deaf) == "defaults\n    option abortonclose\nbackend b\n"


def test_what_serve_may_add_some_day_is_on_loopback_too() -> None:
    assert narrowed("frontend news\n    bind 0.0.0.0:1234 ssl\n") == "frontend news\n    bind 127.0.0.1:1234 ssl\n"


def test_the_program_narrows_the_file_and_becomes_haproxy(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("listen stats\n  bind *:8404\n  mode http\n  timeout client 1s\n  timeout server 1s\n  timeout connect 1s\n")
    settings = private_environment(tmp_path, lambda: 1)
    program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run([program, "-c", "-f", config], capture_output=True, text=True, env={**os.environ, **settings}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "bind 127.0.0.1:8404" in config.read_text()
    assert stat.S_IMODE(Path(program).stat().st_mode) == 0o700 and sys.executable in Path(program).read_text()


def test_a_port_to_be_bound_later_is_none_that_the_kernel_gives_to_connections_meanwhile() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert PORTS.stop <= lowest or lowest < 32768, "a machine that was set so has no such port"
    assert all(free_port() in PORTS for _ in range(100))
