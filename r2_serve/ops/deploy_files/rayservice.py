"""A Serve config as a KubeRay RayService: the same applications, on pods as many and large as they ask for.

What changes in the config, and why: `pod_config.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import PurePosixPath

from r2_serve.errors import ConfigError
from r2_serve.http.keys import require_keys
from r2_serve.ops.deploy_files.needs import (
    Replicas,
    custom_resources,
    is_large_enough,
    num_nodes,
    parts,
    replicas_of,
    variables_of,
)
from r2_serve.ops.deploy_files.pod_config import EVERY_ADDRESS, ROUTERS, as_text, on_pods
from r2_serve.ops.deploy_files.pods import CLUSTER_ENVIRONMENT, DRAIN, FLUSH_S, GpuGroup, Node
from r2_serve.ops.deploy_files.templates import Object, documents, render, template
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import ROUTER

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
    cpu_nodes: tuple[int, int] | None = None
    """Fewest and most pods; None: what the replicas need."""
    gpu_groups: tuple[GpuGroup, ...] = ()
    """Empty: one group, `gpu`, whose pods have as many GPUs as the largest replica takes, with 4 CPUs and
    16 GiB each, as in cluster.yaml."""
    gpu_nodes: tuple[int, int] | None = None
    """Fewest and most pods of that one group."""
    gpu_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of nodes for GPU pods, by label or by `GROUP:LABEL`."""
    claims: Mapping[str, str] = field(default_factory=dict)
    routers: int | None = None
    """Fewest replicas of the router, each on a node of its own. None: two, or one that keeps a database."""
    redis: str | None = None
    """Address of a Redis that keeps Ray's state while the head is away."""
    redis_secret: str | None = None


def manifest_text(config: ServeConfig, options: Options) -> str:
    """The RayService and its disruption budget as YAML, under a comment that lists what must exist first.

    Raises: ConfigError if the config has no client keys, or a replica fits on no node.
    """
    num_routers = _num_routers(config, options.routers)
    options = replace(options, routers=num_routers)
    raw = on_pods(config.raw, num_routers)
    values = _values(replace(config, raw=raw), options)
    lines = render("head_of_manifest.yaml", **values)["lines"]
    budgets = [
        render("disruption_budget.yaml", **vars(options), **group)
        for group in values["workers"]
        if group["spread"] and group["fewest"] > 1
    ]
    objects = [render("rayservice.yaml", **values), *budgets]
    return "".join(f"# {line['text']}\n" for line in lines) + documents(objects)


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
    most_routers = next(entry.max_replicas for entry in replicas if entry.deployment == ROUTER)
    grace_s = int(max(entry.shutdown_s for entry in replicas)) + FLUSH_S
    ports = {"serve": config.http_port, "metrics": METRICS_PORT}
    keys_file = PurePosixPath(server.keys_file) if server.keys_file else None
    secrets: Object = {name: {"name": options.secret, "key": name} for name in variables_of(config)}
    secrets["HF_TOKEN"] = {"name": options.secret, "key": "HF_TOKEN", "optional": True}
    head = {
        "container": "ray-head",
        "ports": {"gcs-server": 6379, "dashboard": 8265, "client": 10001, **ports},
        **dict.fromkeys(
            ("secrets", "keys_file", "drain", "node_selector", "spread")
        ),  # no replica runs in it
        **options.head.pod_values,
    }
    return {
        **vars(options),
        "routers_text": str(options.routers),
        "port": config.http_port,
        "serve_config": as_text(config.raw),
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
        "counts_apart": most_routers > 1,
        "databases": ", ".join(_databases(config)) if most_routers > 1 else "",
    }


def _num_routers(config: ServeConfig, asked: int | None) -> int:
    """The fewest replicas of the router. Raises: ConfigError if several would write one database."""
    databases = _databases(config)
    if asked is not None and asked > 1 and databases:
        raise ConfigError(
            f"--routers {asked}: {', '.join(databases)} is a SQLite file, which one machine alone may write: "
            "leave --routers out, or the file"
        )
    return asked or (1 if databases else ROUTERS)


def _databases(config: ServeConfig) -> list[str]:
    """The SQLite files of the router: no network file system has what several writers of one need."""
    server = config.router.server
    return [path for path in (server.spend_file, server.responses.file, server.feedback_file) if path]


def _worker_groups(replicas: Sequence[Replicas], options: Options) -> Iterator[Object]:
    on_gpus = [entry for entry in replicas if entry.has_gpu]
    on_cpus = [entry for entry in replicas if not entry.has_gpu]
    if on_cpus:
        made = _group("cpu", on_cpus, options.cpu_node, options.cpu_nodes)
        yield {"node_selector": None, "spread": _spread(options.name, "cpu"), **made}
    groups = options.gpu_groups or (_gpu_group(on_gpus, options.gpu_nodes),)
    members: dict[str, list[Replicas]] = {group.name: [] for group in groups}
    for entry in on_gpus:
        members[_home(entry, groups).name].append(entry)
    for group in groups:
        if members[group.name]:
            selector = _selector(group.name, options.gpu_selector) if group.node.gpus else None
            made = _group(group.name, members[group.name], group.node, group.bounds)
            yield {"node_selector": selector or None, "spread": None, **made}


def _spread(name: str, group: str) -> list[Object]:
    """Puts the pods of the group on different machines where that is possible."""
    labels = {"app.kubernetes.io/instance": name, "ray.io/group": group}
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
    ]


def _gpu_group(replicas: Sequence[Replicas], bounds: tuple[int, int] | None) -> GpuGroup:
    gpus = max(1, math.ceil(max((entry.takes["GPU"] for entry in replicas), default=0)))
    return GpuGroup("gpu", Node(cpus=4 * gpus, memory_gib=16 * gpus, gpus=gpus), bounds)


def _home(entry: Replicas, groups: Sequence[GpuGroup]) -> GpuGroup:
    """The group that a replica names as a resource, or else the first one whose pods are large enough.

    A replica that is larger than every pod spans several of the largest. Raises: ConfigError if none will do.
    """
    named = [group for group in groups if group.name in entry.takes]
    by_size = sorted(named or groups, key=lambda group: -group.node.gpus)
    for whole, choice in ((True, named or groups), (False, by_size)):
        for group in choice:
            pieces = [entry] if whole else parts(entry, [group.node.room])
            if all(is_large_enough(group.node.room, piece.takes) for piece in pieces):
                return group
    if len(groups) == 1:
        return groups[0]  # the error of a replica that fits no node says what is missing
    sizes = ", ".join(f"{group.name} ({group.node.gpus} GPU)" for group in named or groups)
    raise ConfigError(
        f"a replica of {entry.application}/{entry.deployment} takes {entry.takes['GPU']:g} GPU, "
        f"{entry.takes.get('CPU', 0):g} CPU, and no pod of these groups is as large: {sizes}"
    )


def _selector(group: str, given: Mapping[str, str]) -> dict[str, str]:
    """The labels of nodes for the pods of `group`: those for all groups, and its own."""
    pairs = [(*label.rpartition(":")[::2], value) for label, value in given.items()]
    return {label: value for owner, label, value in pairs if owner in ("", group)}


def _group(name: str, replicas: Sequence[Replicas], node: Node, given: tuple[int, int] | None) -> Object:
    custom = custom_resources(replicas, node.room)
    needed = [num_nodes(replicas, node.room | custom, at_most=at_most) for at_most in (False, True)]
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
