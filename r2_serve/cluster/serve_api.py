"""Serve's REST interface: what runs, deploying a config, and waiting until an application follows it.

Ray's own client (`ray.dashboard.modules.serve.sdk`) has no timeouts, raises bare `RuntimeError`s, and its
import loads Ray. Authentication is Ray's: the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
~/.ray/auth_token.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import httpx

from r2_serve.errors import PublishError, ServeApiError

PATH = "/api/serve/applications/"
NODES_PATH = "/api/v0/nodes?limit=10000"
POLL_S = 0.25
REQUEST_TIMEOUT_S = 30.0
FAILED = ("DEPLOY_FAILED", "UNHEALTHY", "DELETING", "NOT_STARTED")


class Application(TypedDict, total=False):
    """What this module reads of Serve's `ApplicationDetails`."""

    status: str
    message: str
    source: str
    deployed_app_config: dict[str, object] | None
    deployments: dict[str, dict[str, object]]


class Dashboard:
    """The dashboard of a Ray cluster at `url`. An application may take `timeout_s` to follow a change."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.url, self.timeout_s, self._sleep = url.rstrip("/"), timeout_s, sleep
        token = _token(environ)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=REQUEST_TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    def applications(self) -> dict[str, Application]:
        """What runs, by application name. Raises: ServeApiError."""
        try:
            found: dict[str, Application] = self._request("GET").json()["applications"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            message = f"{self.url} does not answer as a Ray dashboard: is it one? (--dashboard)"
            raise ServeApiError(message) from e
        return found

    def gpu_nodes(self) -> list[str]:
        """Ids of the nodes with GPUs that are up. Raises: ServeApiError."""
        try:
            found = self._request("GET", path=NODES_PATH).json()["data"]["result"]["result"]
            return [
                str(node["node_id"])
                for node in found
                if node["state"] == "ALIVE" and node["resources_total"].get("GPU")
            ]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
            raise ServeApiError(f"{self.url}{NODES_PATH} does not list nodes as Ray 2.60 does: {e!r}") from e

    def deploy(self, config: Mapping[str, object]) -> None:
        """Makes `config` the target, as `serve deploy` does. Raises: ServeApiError."""
        self._request("PUT", config)

    def wait_for(self, app: str) -> None:
        """Waits until all of `app` follows the last deploy. Raises: ServeApiError with Serve's reason."""
        give_up_at = time.monotonic() + self.timeout_s
        status, message = "unknown", ""
        while time.monotonic() < give_up_at:
            details = self.applications().get(app, Application())
            status, message = details.get("status", "NOT_STARTED"), _reason(details.get("message") or "")
            if status == "RUNNING":
                return
            if status in FAILED:
                raise ServeApiError(f"application {app!r} is {status}: {message or 'no reason given'}")
            self._sleep(POLL_S)
        waited = f"application {app!r} is still {status} after {self.timeout_s:g} s {message}"
        raise ServeApiError(waited.rstrip())

    def _request(
        self, method: str, body: Mapping[str, object] | None = None, path: str = PATH
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as e:
            raise ServeApiError(
                f"no Ray dashboard answers at {self.url} ({type(e).__name__}: {e}). Give the head's with "
                "--dashboard; `r2-serve up` has one with `--dashboard 8265`"
            ) from e
        match response.status_code:
            case 200:
                return response
            case 401 | 403:
                hint = "set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token from the cluster's head"
                refusal = f"the dashboard at {self.url} refuses the token ({response.status_code})"
                raise ServeApiError(f"{refusal}: {hint}")
            case 404:
                hint = "it does not answer as a Ray dashboard. Give the head's with --dashboard"
                raise ServeApiError(f"{self.url} has no {path}: {hint}")
        answer = f"answered {response.status_code}: {response.text[:500]}"
        raise ServeApiError(f"{method} {self.url}{path} {answer}")


def check_deployed(config: Mapping[str, list[dict[str, object]]], running: Mapping[str, Application]) -> None:
    """Raises: PublishError if deploying `config` would start or restart an application."""
    for app in config["applications"]:
        fault = _fault(app, running.get(str(app["name"])))
        if fault:
            raise PublishError(f"application {app['name']!r} {fault}")


def _fault(app: Mapping[str, object], details: Application | None) -> str | None:
    if details is None:
        return "of the file does not run on this cluster: `serve deploy` the file first"
    deployed = details.get("deployed_app_config")
    if details.get("source") == "imperative" or not deployed:
        return "was not deployed from a config file, so it cannot change in place: `serve deploy` the file"
    if details.get("status") != "RUNNING":
        reason = _reason(details.get("message") or "")
        return f"is {details.get('status')}: {reason or 'wait until it runs, or repair it'}"
    differing = [key for key in ("import_path", "args") if deployed.get(key, {}) != app.get(key, {})]
    if differing:
        hint = "`serve deploy` the file first, or take the change back"
        return f"would restart, as its {differing} in the file are not what runs: {hint}"
    return None


def _reason(message: str) -> str:
    """The last error of a traceback, or the message as it is."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors[-1].split("Error: ", 1)[1] if errors else " ".join(lines))[:1000]


def _token(environ: Mapping[str, str]) -> str:
    """The token as Ray looks for it; empty if there is none or authentication is off."""
    if environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return ""
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"].strip()
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
