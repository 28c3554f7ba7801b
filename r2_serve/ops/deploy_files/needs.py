"""What a Serve config asks of its nodes: how many of which size, at the least and at the most, and which variables.

Nodes are counted by packing the replicas into them, largest first, which is how many a scheduler that packs at least needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r2_serve.config import HostedEngineConfig
from r2_serve.errors import ConfigError
from r2_serve.serve_config import ServeConfig

SERVE_DEFAULT_CPUS = 1.0
DEFAULT_SHUTDOWN_S = 120.0
"""As `r2_serve.app` binds `Model` and `Router`."""
Resources = Mapping[str, float]
"""Amounts by Ray's names: `CPU`, `GPU`, `memory` in bytes, and custom ones."""
DEPLOYMENTS = {
    "r2_serve.app:build": ("Router", "Decomposer", "Allocator"),
    "r2_serve.app:build_model": ("Model",),
}


@dataclass(frozen=True)
class Replicas:
    """A deployment's replicas: what one takes, on one node, and how many there may be."""

    application: str
    deployment: str
    takes: Resources
    min_replicas: int
    max_replicas: int
    max_per_node: int
    """Of them on one node; 0: no limit."""
    shutdown_s: float
    """How long one may take to finish what it is at."""

    @property
    def has_gpu(self) -> bool:
        return self.takes.get("GPU", 0) > 0


def replicas_of(config: ServeConfig) -> list[Replicas]:
    """Of every deployment, those without an entry in the file among them. Raises: ConfigError where one cannot be on one node."""
    return [entry for app in config.raw["applications"] for entry in _deployments(app)]


def variables_of(config: ServeConfig) -> list[str]:
    """Environment variables that hold secrets, in the file's order."""
    named = [
        model.engine.api_key_env
        for model in config.router.models
        if isinstance(model.engine, HostedEngineConfig)
    ]
    return list(dict.fromkeys(name for name in [*named, config.router.server.api_keys_env] if name))


def num_nodes(replicas: Sequence[Replicas], node: Resources, *, at_most: bool) -> int:
    """Nodes like `node` that hold the fewest (or the most) replicas. Raises: ConfigError where one is larger than a node."""
    wanted = [
        entry for entry in replicas for _ in range(entry.max_replicas if at_most else entry.min_replicas)
    ]
    wanted.sort(key=lambda entry: (-entry.takes.get("GPU", 0), -entry.takes.get("CPU", 0)))
    nodes: list[_Packed] = []
    for entry in wanted:
        place = next((packed for packed in nodes if packed.has_room_for(entry)), None)
        if place is None:
            _check_fits(entry, node)
            nodes.append(place := _Packed(dict(node), []))
        place.take(entry)
    return len(nodes)


@dataclass
class _Packed:
    """A node that fills up."""

    room: dict[str, float]
    replicas: list[Replicas]

    def has_room_for(self, entry: Replicas) -> bool:
        return _fits(entry.takes, self.room) and not 0 < entry.max_per_node <= self.replicas.count(entry)

    def take(self, entry: Replicas) -> None:
        self.replicas.append(entry)
        for name, amount in entry.takes.items():
            self.room[name] = self.room.get(name, 0) - amount


def custom_resources(replicas: Sequence[Replicas], node: Resources) -> dict[str, int]:
    """Of a node, so that as many replicas find their custom resources there as find GPUs (or else CPUs)."""
    found: dict[str, int] = {}
    for entry in replicas:
        kind = "GPU" if entry.has_gpu else "CPU"
        num = math.floor(node.get(kind, 0) / entry.takes[kind]) if entry.takes.get(kind) else 1
        for name, amount in entry.takes.items():
            if name not in ("CPU", "GPU", "memory"):
                found[name] = max(found.get(name, 0), math.ceil(amount * max(1, num)))
    return found


def _deployments(app: Mapping[str, Any]) -> Iterator[Replicas]:
    entries = {entry["name"]: entry for entry in app.get("deployments", ())}
    for name in dict.fromkeys([*DEPLOYMENTS.get(app["import_path"], ()), *entries]):
        options = entries.get(name, {})
        smallest, largest = _bounds(options)
        shutdown_s = float(options.get("graceful_shutdown_timeout_s", DEFAULT_SHUTDOWN_S))
        takes, per_node = _takes(app["name"], name, options), int(options.get("max_replicas_per_node") or 0)
        yield Replicas(app["name"], name, takes, smallest, largest, per_node, shutdown_s)


def _bounds(options: Mapping[str, Any]) -> tuple[int, int]:
    scaling = options.get("autoscaling_config") or {}
    if options.get("num_replicas") == "auto":  # Serve's own meaning of it, under what the file says
        scaling = {"min_replicas": 1, "max_replicas": 100} | scaling
    elif options.get("num_replicas") is not None:
        return int(options["num_replicas"]), int(options["num_replicas"])
    return int(scaling.get("min_replicas", 1)), int(scaling.get("max_replicas", 1))


def _takes(app: str, deployment: str, options: Mapping[str, Any]) -> Resources:
    bundles = options.get("placement_group_bundles")
    if bundles:
        if options.get("placement_group_strategy", "PACK") not in ("PACK", "STRICT_PACK"):
            message = f"{app}/{deployment}: a replica spread over nodes (placement_group_strategy) needs worker groups written by hand"
            raise ConfigError(message)
        return {
            name: sum(float(bundle.get(name, 0)) for bundle in bundles)
            for name in {name for bundle in bundles for name in bundle}
        }
    actor = options.get("ray_actor_options") or {}
    takes = {"CPU": float(actor.get("num_cpus", SERVE_DEFAULT_CPUS)), "GPU": float(actor.get("num_gpus", 0))}
    takes |= {"memory": float(actor["memory"])} if actor.get("memory") else {}
    return takes | {name: float(amount) for name, amount in (actor.get("resources") or {}).items()}


def _fits(takes: Resources, room: Resources) -> bool:
    return all(room.get(name, 0) >= amount - 1e-9 for name, amount in takes.items())


def _check_fits(entry: Replicas, node: Resources) -> None:
    for name, amount in entry.takes.items():
        if node.get(name, 0) < amount - 1e-9:
            message = f"a replica of {entry.application}/{entry.deployment} takes {amount:g} {name}, a node has {node.get(name, 0):g}"
            raise ConfigError(f"{message}: make the node larger (see --help)")
