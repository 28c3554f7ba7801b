"""Serve's REST interface, as far as publishing needs it: deploy a config, and wait until an application follows.

Not `ray.dashboard.modules.serve.sdk`: that client has no timeouts, answers with bare `RuntimeError`s, and importing it
takes Ray. Authentication is Ray's: the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from r2_serve.errors import PublishError

PATH = "/api/serve/applications/"
POLL_S = 0.25
REQUEST_TIMEOUT_S = 30.0
FAILED = ("DEPLOY_FAILED", "UNHEALTHY", "DELETING", "NOT_STARTED")


class Dashboard:
    """The dashboard of a Ray cluster at `url`. `timeout_s` is how long an application may take to follow a change."""

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

    def applications(self) -> dict[str, Any]:
        """What runs, by application name: Serve's `ApplicationDetails`. Raises: PublishError."""
        try:
            found: dict[str, Any] = self._request("GET").json()["applications"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise PublishError(
                f"{self.url} does not answer as a Ray dashboard: is it one? (--dashboard)"
            ) from e
        return found

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make `config` the target, as `serve deploy` does. Raises: PublishError."""
        self._request("PUT", json=config)

    def wait_for(self, app: str) -> None:
        """Until every replica of `app` follows what was deployed last. Raises: PublishError with Serve's reason."""
        give_up_at = time.monotonic() + self.timeout_s
        status, message = "unknown", ""
        while time.monotonic() < give_up_at:
            details = self.applications().get(app, {})
            status, message = (
                str(details.get("status", "NOT_STARTED")),
                _reason(str(details.get("message", ""))),
            )
            if status == "RUNNING":
                return
            if status in FAILED:
                raise PublishError(f"application {app!r} is {status}: {message or 'no reason given'}")
            self._sleep(POLL_S)
        raise PublishError(
            f"application {app!r} is still {status} after {self.timeout_s:g} s {message}".rstrip()
        )

    def _request(self, method: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, PATH, **options)
        except httpx.HTTPError as e:
            raise PublishError(
                f"no Ray dashboard answers at {self.url} ({type(e).__name__}: {e}). Give the head's with --dashboard; a local cluster of "
                "`r2-serve up` has none: start one with `ray start --head` and `serve deploy` the file"
            ) from e
        if response.status_code in (401, 403):
            raise PublishError(
                f"the dashboard at {self.url} refuses the token ({response.status_code}): set RAY_AUTH_TOKEN, or copy ~/.ray/auth_token "
                "from the cluster's head"
            )
        if response.status_code == 404:
            raise PublishError(
                f"{self.url} has no {PATH}: it does not answer as a Ray dashboard. Give the head's with --dashboard"
            )
        if response.status_code != 200:
            raise PublishError(
                f"{method} {self.url}{PATH} answered {response.status_code}: {response.text[:500]}"
            )
        return response


def check_deployed(config: Mapping[str, Any], running: Mapping[str, Any]) -> None:
    """Raises: PublishError where deploying `config` would start or restart something: then publishing is not in place."""
    for app in config["applications"]:
        fault = _fault(app, running.get(app["name"]))
        if fault:
            raise PublishError(f"application {app['name']!r} {fault}")


def _fault(app: Mapping[str, Any], details: Mapping[str, Any] | None) -> str | None:
    if details is None:
        return "of the file does not run on this cluster: `serve deploy` the file first"
    deployed = details.get("deployed_app_config")
    if details.get("source") == "imperative" or not deployed:
        return "was not deployed from a config file, so it cannot change in place: `serve deploy` the file"
    if details.get("status") != "RUNNING":
        return f"is {details.get('status')}: {_reason(details.get('message', '')) or 'wait until it runs, or repair it'}"
    differing = [key for key in ("import_path", "args") if deployed.get(key, {}) != app.get(key, {})]
    if differing:
        return f"would restart, as its {differing} in the file are not what runs: `serve deploy` the file first, or take the change back"
    return None


def _reason(message: str) -> str:
    """The last error of a traceback, or the message as it is."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors[-1].split("Error: ", 1)[1] if errors else " ".join(lines))[:1000]


def _token(environ: Mapping[str, str]) -> str:
    """As Ray looks for it; empty where there is none or authentication is off."""
    if environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return ""
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"].strip()
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
