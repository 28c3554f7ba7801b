"""Publishing on Kubernetes: the change goes into the RayService, and KubeRay's operator passes it on.

A change that went to the Ray dashboard alone would be undone when the operator starts again: it keeps what it
sent last in its memory only, and then sends `serveConfigV2` of the custom resource anew (KubeRay,
`checkIfNeedSubmitServeApplications`).

`kubectl` does the work, with the user's own context and rights: it reads and patches the RayService, reads
Ray's token from its Secret, and forwards a port to the dashboard, which tells what runs.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess  # nosec B404
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from r2_serve.cluster.serve_api import Application, Dashboard
from r2_serve.errors import ConfigError, PublishError
from r2_serve.ops.deploy_files.pod_config import ROUTERS, as_text, on_pods
from r2_serve.serve_config.document import YamlMapping

KUBECTL = "kubectl"
KUBECTL_S = 60.0
"""Seconds that one call of kubectl may take."""
POLL_S = 1.0
DASHBOARD_PORT = 8265
ROUTERS_ANNOTATION = "r2/routers"
"""The annotation in which the manifest keeps `--routers`, as the file does not hold it."""
FORWARDS = re.compile(r"Forwarding from (127\.0\.0\.1:\d+) ")


@dataclass(frozen=True)
class RayService:
    """A RayService by name; `namespace` None is that of kubectl's context."""

    name: str
    namespace: str | None = None
    kubectl: Sequence[str] = (KUBECTL,)

    @classmethod
    def parse(cls, text: str) -> RayService:
        """The RayService of `--rayservice [NAMESPACE/]NAME`. Raises: ConfigError."""
        namespace, _, name = text.rpartition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or "/" in namespace:
            raise ConfigError(f"--rayservice: got {text!r}, expected NAME or NAMESPACE/NAME")
        return cls(name, namespace or None)

    def read(self) -> YamlMapping:
        """The custom resource. Raises: PublishError with kubectl's reason."""
        found: YamlMapping = json.loads(self._run("get", "rayservice", self.name, "-o", "json"))
        return found

    def write_config(self, text: str) -> None:
        """Makes `text` the Serve config of the custom resource. Raises: PublishError."""
        patch = json.dumps({"spec": {"serveConfigV2": text}})
        patched = ("patch", "rayservice", self.name, "--type", "merge", "--patch-file", "/dev/stdin")
        self._run(*patched, given=patch)

    def token(self, resource: YamlMapping) -> str:
        """Ray's token: of the Secret that the manifest names, or of the one that KubeRay made."""
        auth = resource["spec"]["rayClusterConfig"].get("authOptions") or {}
        active = (resource.get("status") or {}).get("activeServiceStatus") or {}
        secret = auth.get("secretName") or active.get("rayClusterName")
        if not secret:
            raise PublishError(f"RayService {self.name!r} has no running cluster yet: wait until it is Ready")
        encoded = self._run("get", "secret", secret, "-o", "jsonpath={.data.auth_token}")
        return base64.b64decode(encoded).decode()

    @contextmanager
    def forwarded(self) -> Iterator[str]:
        """The URL of the dashboard on loopback, while the context lasts. Raises: PublishError."""
        command = self._command("port-forward", f"service/{self.name}-head-svc", f":{DASHBOARD_PORT}")
        piped, to_it = subprocess.PIPE, subprocess.STDOUT
        with subprocess.Popen(command, stdout=piped, stderr=to_it, text=True) as process:  # noqa: S603  # nosec B603
            try:
                assert process.stdout is not None
                lines: list[str] = []
                for line in process.stdout:
                    lines.append(line.strip())
                    if found := FORWARDS.match(line):
                        yield f"http://{found[1]}"
                        return
                raise PublishError(f"kubectl forwards no port to the dashboard: {' '.join(lines)}")
            finally:
                process.terminate()

    def _command(self, *words: str) -> list[str]:
        where = [] if self.namespace is None else ["--namespace", self.namespace]
        return [*self.kubectl, *where, *words]

    def _run(self, *words: str, given: str | None = None) -> str:
        try:
            done = subprocess.run(  # noqa: S603  # nosec B603
                self._command(*words),
                input=given,
                capture_output=True,
                text=True,
                timeout=KUBECTL_S,
                check=False,
            )
        except FileNotFoundError as e:
            raise PublishError(f"{self.kubectl[0]} is not installed: --rayservice needs it") from e
        except subprocess.TimeoutExpired as e:
            raise PublishError(f"`kubectl {words[0]}` has no answer after {KUBECTL_S:g} s") from e
        if done.returncode != 0:
            raise PublishError(f"`kubectl {' '.join(words[:3])}` failed: {done.stderr.strip()}")
        return done.stdout


class RayServiceDashboard(Dashboard):
    """The dashboard of a RayService's cluster; a deploy goes through the custom resource."""

    def __init__(
        self, url: str, service: RayService, num_routers: int, *, timeout_s: float, environ: Mapping[str, str]
    ) -> None:
        super().__init__(url, timeout_s=timeout_s, environ=environ)
        self._service, self._num_routers = service, num_routers

    def deploy(self, config: Mapping[str, object]) -> None:
        """Patches the custom resource, and returns when the operator has passed the config on.

        Raises: PublishError if kubectl fails, or the operator does not follow in time.
        """
        made = on_pods(dict(config), self._num_routers)
        self._service.write_config(as_text(made))
        give_up_at = time.monotonic() + self.timeout_s
        while not _follows(made, self.applications()):
            if time.monotonic() > give_up_at:
                raise PublishError(
                    f"KubeRay did not pass the config on within {self.timeout_s:g} s: look at "
                    f"`kubectl describe rayservice {self._service.name}` and at the operator's log"
                )
            time.sleep(POLL_S)


def _follows(config: YamlMapping, running: Mapping[str, Application]) -> bool:
    """Whether the cluster has these applications with these `user_config`s: what publishing changes."""
    deployed = {name: app.get("deployed_app_config") or {} for name, app in running.items()}
    if deployed.keys() != {app["name"] for app in config["applications"]}:
        return False
    return all(_live_parts(app) == _live_parts(deployed[app["name"]]) for app in config["applications"])


def _live_parts(app: YamlMapping) -> YamlMapping:
    """The `user_config` of each deployment that has one, as JSON gives it back."""
    found = {entry["name"]: entry.get("user_config") for entry in app.get("deployments") or ()}
    parts: YamlMapping = json.loads(json.dumps({name: part for name, part in found.items() if part}))
    return parts


@dataclass(frozen=True)
class Target:
    """The place that a command deploys to: the cluster of a dashboard, or a RayService."""

    dashboard: str
    rayservice: str | None
    timeout_s: float

    @contextmanager
    def reached(self) -> Iterator[Dashboard]:
        """The dashboard, while the context lasts. Raises: ConfigError, PublishError."""
        if self.rayservice is None:
            yield Dashboard(self.dashboard, timeout_s=self.timeout_s)
            return
        service = RayService.parse(self.rayservice)
        resource = service.read()
        environ = {"RAY_AUTH_TOKEN": service.token(resource)}
        annotations = resource["metadata"].get("annotations") or {}
        num_routers = int(annotations.get(ROUTERS_ANNOTATION, ROUTERS))
        with service.forwarded() as url:
            yield RayServiceDashboard(url, service, num_routers, timeout_s=self.timeout_s, environ=environ)
