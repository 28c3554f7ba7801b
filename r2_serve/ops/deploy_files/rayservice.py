"""A Serve config as a KubeRay RayService: the same applications, on pods as large and as many as they ask for.

Two things of the file become others, since a pod is reached by its address: `http_options.host` is 0.0.0.0 (so the
config must have client keys) and `proxy_location` EveryNode (a proxy beside each replica, none on the head in the way).
Source: KubeRay v1.7 API reference, ray.io/v1; v1.6 is the oldest that knows every field used here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import yaml

from r2_serve.errors import ConfigError
from r2_serve.http.keys import require_keys
from r2_serve.ops.deploy_files.environment import CLUSTER_ENVIRONMENT
from r2_serve.ops.deploy_files.needs import Replicas, custom_resources, num_nodes, replicas_of, variables_of
from r2_serve.ops.deploy_files.pods import METRICS_PORT, Node, Secrets, Volumes, pod_template
from r2_serve.serve_config import ServeConfig

EVERY_ADDRESS = "0.0.0.0"  # of a pod, behind client keys  # noqa: S104  # nosec B104
IDLE_S = 900
"""Without work before a pod goes: as cluster.yaml's `idle_timeout_minutes`."""


@dataclass(frozen=True)
class Options:
    """What a config does not say of a cluster."""

    name: str = "r2"
    namespace: str = "default"
    image: str = "r2-router:latest"
    secret: str = "r2-env"  # noqa: S105
    keys_secret: str = "r2-client-keys"  # noqa: S105
    auth_secret: str | None = None
    head: Node = field(default_factory=lambda: Node(cpus=4, memory_gib=16))
    cpu_node: Node = field(default_factory=lambda: Node(cpus=8, memory_gib=16))
    gpu_node: Node | None = None
    """None: as many GPUs as the largest replica takes, with 4 CPUs and 16 GiB each, as cluster.yaml's."""
    cpu_nodes: tuple[int, int] | None = None
    """Fewest and most; None: what the replicas need."""
    gpu_nodes: tuple[int, int] | None = None
    gpu_selector: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)


def ray_service(config: ServeConfig, options: Options) -> dict[str, Any]:
    """The manifest. Raises: ConfigError where the config would be open to strangers, or a replica fits on no node."""
    try:
        require_keys(EVERY_ADDRESS, config.router.server)
    except ConfigError as e:
        raise ConfigError(f"{e.message}.\n{_HOW_TO_SET_KEYS}") from e
    replicas = replicas_of(config)
    shutdown_s = max(entry.shutdown_s for entry in replicas)
    pods = _Pods(config, options, shutdown_s)
    cluster = {
        "rayVersion": version("ray"),
        "authOptions": _auth(options),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": IDLE_S, "upscalingMode": "Default"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": EVERY_ADDRESS},
            "template": pods.head(),
        },
        "workerGroupSpecs": list(_worker_groups(pods, replicas, options)),
    }
    spec = {
        "serveConfigV2": serve_config_text(config),
        "excludeHeadPodFromServeSvc": True,
        "rayClusterConfig": cluster,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": options.name, "namespace": options.namespace},
        "spec": spec,
    }


def _auth(options: Options) -> dict[str, str]:
    """Of Ray's own ports: KubeRay makes a token, or takes the one named, and gives it to every pod."""
    named = {"secretName": options.auth_secret} if options.auth_secret else {}
    return {"mode": CLUSTER_ENVIRONMENT["RAY_AUTH_MODE"], **named}


def serve_config_text(config: ServeConfig) -> str:
    """The config's data as YAML, but for the two things that this module's docstring names."""
    http = {**config.raw.get("http_options", {}), "host": EVERY_ADDRESS}
    return yaml.safe_dump(
        {**config.raw, "proxy_location": "EveryNode", "http_options": http}, sort_keys=False, width=140
    )


class _Pods:
    """The pods of one service, which differ in size, ports and whether replicas run in them."""

    def __init__(self, config: ServeConfig, options: Options, shutdown_s: float) -> None:
        server = config.router.server
        self._options, self._shutdown_s = options, shutdown_s
        self._volumes = Volumes(options.claims, server.keys_file, options.keys_secret)
        self._secrets = Secrets(options.secret, variables_of(config))
        self._ports = {"serve": config.http_port, "metrics": METRICS_PORT}
        _check_folders(self._volumes, server.spend_file, server.trace_dir)

    def head(self) -> dict[str, Any]:
        ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **self._ports}
        without_keys = replace(self._volumes, keys_file=None)
        return self._template(
            "ray-head", self._options.head, ports, volumes=without_keys, secrets=None, node_selector={}
        )

    def worker(self, node: Node) -> dict[str, Any]:
        selector = self._options.gpu_selector if node.gpus else {}
        return self._template(
            "ray-worker",
            node,
            self._ports,
            secrets=self._secrets,
            node_selector=selector,
            volumes=self._volumes,
        )

    def _template(
        self, name: str, node: Node, ports: Mapping[str, int], *, volumes: Volumes, **of_role: Any
    ) -> dict[str, Any]:
        options = self._options
        return pod_template(
            name,
            options.name,
            options.image,
            node,
            ports=ports,
            volumes=volumes,
            shutdown_s=self._shutdown_s,
            **of_role,
        )


def _worker_groups(pods: _Pods, replicas: Sequence[Replicas], options: Options) -> list[dict[str, Any]]:
    on_gpus = [entry for entry in replicas if entry.has_gpu]
    on_cpus = [entry for entry in replicas if not entry.has_gpu]
    groups = []
    if on_cpus:
        groups.append(_group("cpu", pods, on_cpus, options.cpu_node, options.cpu_nodes))
    if on_gpus:
        groups.append(_group("gpu", pods, on_gpus, options.gpu_node or _gpu_node(on_gpus), options.gpu_nodes))
    return groups


def _gpu_node(replicas: Sequence[Replicas]) -> Node:
    gpus = max(1, math.ceil(max(entry.takes["GPU"] for entry in replicas)))
    return Node(cpus=4 * gpus, memory_gib=16 * gpus, gpus=gpus)


def _group(
    name: str, pods: _Pods, replicas: Sequence[Replicas], node: Node, given: tuple[int, int] | None
) -> dict[str, Any]:
    room: dict[str, float] = {"CPU": node.cpus, "GPU": node.gpus, "memory": node.memory_gib * 2**30}
    custom = custom_resources(replicas, room)
    room |= custom
    fewest, most = (num_nodes(replicas, room, at_most=at_most) for at_most in (False, True))
    if given is not None:
        fewest, most = given
    start = {"resources": json.dumps(json.dumps(custom))} if custom else {}  # a shell unquotes it once more
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": start,
        "template": pods.worker(node),
    }


def _check_folders(volumes: Volumes, *paths: str | None) -> None:
    """Files that outlive a pod must be on a claim. Raises: ConfigError."""
    for path in paths:
        if path and not any(
            PurePosixPath(path).is_relative_to(directory) for directory in volumes.claims.values()
        ):
            message = f"{path} would go with its pod: put it on a volume, such as --claim NAME={PurePosixPath(path).parent}"
            raise ConfigError(message)


_HOW_TO_SET_KEYS = (
    "Pods are reached by their address, so the manifest binds 0.0.0.0. In `args` of the router set\n"
    "  server: {keys_file: /etc/r2/keys.yaml}    mounted from a Secret: r2-serve keys new --name alice > keys.yaml, then\n"
    "                                            kubectl create secret generic r2-client-keys --from-file=keys.yaml\n"
    "or server: {api_keys_env: R2_API_KEYS}      a key of Secret r2-env"
)
