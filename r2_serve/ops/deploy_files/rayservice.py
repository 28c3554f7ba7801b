"""A Serve config as a KubeRay RayService: the same applications, on pods as many and large as they ask for.

A pod is reached by its address, so two keys of the config change: `http_options.host` becomes 0.0.0.0 (the
config must have client keys), and `proxy_location` EveryNode (a proxy on each replica's node, no traffic
through the head).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePosixPath

import yaml

from r2_serve.errors import ConfigError
from r2_serve.http.keys import require_keys
from r2_serve.ops.deploy_files.needs import Replicas, custom_resources, num_nodes, replicas_of, variables_of
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT, DRAIN, FLUSH_S, Node
from r2_serve.ops.deploy_files.templates import Object, documents, render, template
from r2_serve.serve_config import ServeConfig

EVERY_ADDRESS = "0.0.0.0"  # of a pod, behind client keys  # noqa: S104  # nosec B104
METRICS_PORT = 8080
"""Port at which each Ray node shows its metrics on Kubernetes: KubeRay's own setting."""


@dataclass(frozen=True)
class Options:
    """What a cluster needs and the config does not say."""

    name: str = "r2"
    namespace: str = "default"
    image: str = "r2-router:latest"
    secret: str = "r2-env"  # noqa: S105
    keys_secret: str = "r2-client-keys"  # noqa: S105
    auth_secret: str | None = None
    head: Node = field(default_factory=lambda: Node(cpus=4, memory_gib=16))
    cpu_node: Node = field(default_factory=lambda: Node(cpus=8, memory_gib=16))
    gpu_node: Node | None = None
    """None: as many GPUs as the largest replica takes, with 4 CPUs and 16 GiB each, as in cluster.yaml."""
    cpu_nodes: tuple[int, int] | None = None
    """Fewest and most pods; None: what the replicas need."""
    gpu_nodes: tuple[int, int] | None = None
    gpu_selector: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)


def manifest_text(config: ServeConfig, options: Options) -> str:
    """The RayService as YAML, under a comment that lists the secrets and claims that must exist first.

    Raises: ConfigError if the config has no client keys, or a replica fits on no node.
    """
    values = _values(config, options)
    lines = render("head_of_manifest.yaml", **values)["lines"]
    return "".join(f"# {line['text']}\n" for line in lines) + documents([render("rayservice.yaml", **values)])


def _values(config: ServeConfig, options: Options) -> Object:
    """What fills the gaps of the templates."""
    server = config.router.server
    try:
        require_keys(EVERY_ADDRESS, server)
    except ConfigError as e:
        raise ConfigError(f"{e.message}.\n{template('how_to_set_keys.txt').rstrip()}") from e
    _check_folders(
        options.claims, server.spend_file, server.responses.file, server.feedback_file, server.trace_dir
    )
    replicas = replicas_of(config)
    grace_s = int(max(entry.shutdown_s for entry in replicas)) + FLUSH_S
    ports = {"serve": config.http_port, "metrics": METRICS_PORT}
    keys_file = PurePosixPath(server.keys_file) if server.keys_file else None
    secrets: Object = {name: {"name": options.secret, "key": name} for name in variables_of(config)}
    secrets["HF_TOKEN"] = {"name": options.secret, "key": "HF_TOKEN", "optional": True}
    head = {
        "container": "ray-head",
        "ports": {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **ports},
        **dict.fromkeys(("secrets", "keys_file", "drain", "node_selector")),  # no replica runs in it
        **options.head.pod_values,
    }
    return {
        **vars(options),
        "port": config.http_port,
        "serve_config": _serve_config_text(config),
        "ray_version": version("ray"),
        "auth_mode": CLUSTER_ENVIRONMENT["RAY_AUTH_MODE"],
        "grace_s": grace_s,
        # KubeRay sets the mode of authentication itself, together with the token.
        "variables": {name: value for name, value in CLUSTER_ENVIRONMENT.items() if name != "RAY_AUTH_MODE"},
        "head": [head],
        "workers": list(_worker_groups(replicas, options)),
        "container": "ray-worker",
        "ports": ports,
        "secrets": secrets,
        "secret_names": ", ".join(secrets),
        "drain": DRAIN.format(seconds=grace_s),
        "keys_file": keys_file and keys_file.name,
        "keys_folder": keys_file and str(keys_file.parent),
    }


def _serve_config_text(config: ServeConfig) -> str:
    """The config as YAML, but for the two keys that this module's docstring names."""
    http = {**config.raw.get("http_options", {}), "host": EVERY_ADDRESS}
    raw = {**config.raw, "proxy_location": "EveryNode", "http_options": http}
    return yaml.safe_dump(raw, sort_keys=False, width=140)


def _worker_groups(replicas: Sequence[Replicas], options: Options) -> Iterator[Object]:
    on_gpus = [entry for entry in replicas if entry.has_gpu]
    on_cpus = [entry for entry in replicas if not entry.has_gpu]
    if on_cpus:
        yield {"node_selector": None, **_group("cpu", on_cpus, options.cpu_node, options.cpu_nodes)}
    if on_gpus:
        gpus = max(1, math.ceil(max(entry.takes["GPU"] for entry in on_gpus)))
        node = options.gpu_node or Node(cpus=4 * gpus, memory_gib=16 * gpus, gpus=gpus)
        selector = dict(options.gpu_selector) if node.gpus else {}
        yield {"node_selector": selector or None, **_group("gpu", on_gpus, node, options.gpu_nodes)}


def _group(name: str, replicas: Sequence[Replicas], node: Node, given: tuple[int, int] | None) -> Object:
    room: dict[str, float] = {"CPU": node.cpus, "GPU": node.gpus, "memory": node.memory_gib * 2**30}
    custom = custom_resources(replicas, room)
    needed = [num_nodes(replicas, room | custom, at_most=at_most) for at_most in (False, True)]
    fewest, most = given or needed
    resources = json.dumps(json.dumps(custom)) if custom else None  # a shell unquotes it once more
    return {"group": name, "fewest": fewest, "most": most, "custom_resources": resources, **node.pod_values}


def _check_folders(claims: Mapping[str, str], *paths: str | None) -> None:
    """Raises: ConfigError for a path that is on no claim, as its files would end with the pod."""
    for path in paths:
        if path and not any(PurePosixPath(path).is_relative_to(at) for at in claims.values()):
            folder = PurePosixPath(path).parent
            raise ConfigError(
                f"{path} would go with its pod: put it on a volume, such as --claim NAME={folder}"
            )
