"""What a Serve config asks of its nodes: how many of which size, fewest and most, and which variables.

Nodes are counted by packing the replicas into them, largest first: the fewest that a scheduler needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from r2_serve.config import HostedEngineConfig, ModelServerConfig
from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.templates import Object
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import DEPLOYMENTS
from r2_serve.serve_config.defaults import SHUTDOWN_S, cpus_of

Resources = Mapping[str, float]
"""Amounts by Ray's names: `CPU`, `GPU`, `memory` in bytes, and custom ones."""
PHYSICAL = frozenset({"CPU", "GPU", "memory"})


@dataclass(frozen=True)
class Replicas:
    """A deployment's replicas: what one takes, on one node, and how many there may be."""

    application: str
    deployment: str
    takes: Resources
    min_replicas: int
    max_replicas: int
    num_at_start: int
    """Replicas that start before the application counts as running."""
    max_per_node: int
    """Most replicas on one node; 0: no limit."""
    shutdown_s: float
    """Seconds that a replica may take to finish its calls."""
    bundles: tuple[Resources, ...] = ()
    """The parts of a replica that may be on several nodes; empty if it must be on one."""

    @property
    def has_gpu(self) -> bool:
        return self.takes.get("GPU", 0) > 0


def replicas_of(config: ServeConfig) -> list[Replicas]:
    """The replicas of every deployment, with or without an entry in the file.

    Raises: ConfigError if each part of a replica must be on a node of its own.
    """
    return [
        entry
        for app in config.raw["applications"]
        for entry in _deployments(app, config.model_apps.get(app["name"]))
    ]


def variables_of(config: ServeConfig) -> list[str]:
    """Environment variables that hold secrets, in the file's order."""
    engines = [model.engine for model in config.router.models]
    named = [engine.api_key_env for engine in engines if isinstance(engine, HostedEngineConfig)]
    return list(dict.fromkeys(name for name in [*named, config.router.server.api_keys_env] if name))


def num_nodes(replicas: Sequence[Replicas], node: Resources, *, at_most: bool) -> int:
    """How many nodes like `node` hold the fewest (or the most) replicas.

    Raises: ConfigError if a replica is larger than a node.
    """
    numbers = [(entry, entry.max_replicas if at_most else entry.min_replicas) for entry in replicas]
    wanted = [part for entry, number in numbers for part in number * parts(entry, [node])]
    nodes: list[list[Replicas]] = []
    for entry in largest_first(wanted):
        place = next((there for there in nodes if has_room(there, entry, node)), None)
        if place is None:
            _check_fits(entry, node)
            nodes.append(place := [])
        place.append(entry)
    return len(nodes)


def parts(entry: Replicas, nodes: Sequence[Resources]) -> list[Replicas]:
    """What must find room on one node each: the replica, or its bundles if it is larger than every node."""
    if not entry.bundles or any(is_large_enough(node, entry.takes) for node in nodes):
        return [entry]
    return [replace(entry, takes=bundle, max_per_node=0, bundles=()) for bundle in entry.bundles]


def largest_first(replicas: Iterable[Replicas]) -> list[Replicas]:
    """The order in which replicas are placed."""
    return sorted(replicas, key=lambda entry: (-entry.takes.get("GPU", 0), -entry.takes.get("CPU", 0)))


def is_large_enough(node: Resources, takes: Resources) -> bool:
    """Whether an empty node has the CPUs, GPUs and memory."""
    return all(node.get(name, 0) >= takes.get(name, 0) - 1e-9 for name in PHYSICAL)


def custom_resources(replicas: Sequence[Replicas], node: Resources) -> dict[str, int]:
    """Custom resources of a node, for as many replicas as its GPUs (or else its CPUs) are enough for.

    `node` holds its physical ones.
    """
    found: dict[str, int] = {}
    for entry in (part for whole in replicas for part in parts(whole, [node])):
        kind = "GPU" if entry.has_gpu else "CPU"
        num = math.floor(node.get(kind, 0) / entry.takes[kind]) if entry.takes.get(kind) else 1
        for name in entry.takes.keys() - PHYSICAL:
            found[name] = max(found.get(name, 0), math.ceil(entry.takes[name] * max(1, num)))
    return found


def named_resources(replicas: Sequence[Replicas]) -> dict[str, float]:
    """Custom resources of the one node that may hold all of `replicas`."""
    found: dict[str, float] = {}
    for entry in replicas:
        for name in entry.takes.keys() - PHYSICAL:
            found[name] = found.get(name, 0.0) + entry.takes[name] * entry.max_replicas
    return found


def has_room(there: Sequence[Replicas], entry: Replicas, node: Resources) -> bool:
    """Whether one more replica of `entry` fits on `node` with those that are there."""
    taken = {name: sum(other.takes.get(name, 0) for other in there) for name in entry.takes}
    fits = all(node.get(name, 0) - taken[name] >= amount - 1e-9 for name, amount in entry.takes.items())
    return fits and not 0 < entry.max_per_node <= there.count(entry)


def _check_fits(entry: Replicas, node: Resources) -> None:
    for name, amount in entry.takes.items():
        if node.get(name, 0) < amount - 1e-9:
            raise ConfigError(
                f"a replica of {entry.application}/{entry.deployment} takes {amount:g} {name}, "
                f"a node has {node.get(name, 0):g}: make the node larger (see --help)"
            )


def _deployments(app: Object, server: ModelServerConfig | None) -> Iterator[Replicas]:
    entries = {entry["name"]: entry for entry in app.get("deployments", ())}
    for name in dict.fromkeys([*DEPLOYMENTS.get(app["import_path"], ()), *entries]):
        options = entries.get(name, {})
        max_per_node = int(options.get("max_replicas_per_node") or 0)
        shutdown_s = float(options.get("graceful_shutdown_timeout_s", SHUTDOWN_S))
        takes, bundles = _takes(options, server), _separable(app["name"], name, options)
        yield Replicas(app["name"], name, takes, *_bounds(options), max_per_node, shutdown_s, bundles)


def _bounds(options: Object) -> tuple[int, int, int]:
    """The fewest replicas, the most, and those at the start."""
    scaling = options.get("autoscaling_config") or {}
    if options.get("num_replicas") == "auto":  # Serve's own meaning of it, under what the file says
        scaling = {"min_replicas": 1, "max_replicas": 100} | scaling
    elif options.get("num_replicas") is not None:
        return (int(options["num_replicas"]),) * 3
    fewest, most = int(scaling.get("min_replicas", 1)), int(scaling.get("max_replicas", 1))
    return fewest, most, int(scaling.get("initial_replicas") or fewest)


def _takes(options: Object, server: ModelServerConfig | None) -> Resources:
    if bundles := options.get("placement_group_bundles"):
        return {name: sum(float(bundle.get(name, 0)) for bundle in bundles) for name in set().union(*bundles)}
    actor = options.get("ray_actor_options") or {}
    memory = {"memory": float(actor["memory"])} if actor.get("memory") else {}
    return {
        "CPU": cpus_of(options.get("ray_actor_options"), server),
        "GPU": float(actor.get("num_gpus", 0)),
        **memory,
        **{name: float(amount) for name, amount in (actor.get("resources") or {}).items()},
    }


def _separable(app: str, deployment: str, options: Object) -> tuple[Resources, ...]:
    """The bundles of a placement group that may be on several nodes. Raises: ConfigError if they must be."""
    strategy = options.get("placement_group_strategy", "PACK")
    if strategy == "STRICT_SPREAD":
        raise ConfigError(
            f"{app}/{deployment}: placement_group_strategy STRICT_SPREAD wants a node for each bundle: write "
            "PACK, which takes as few nodes as there is room on, or make worker groups by hand"
        )
    if strategy == "STRICT_PACK":
        return ()
    bundles: list[Resources] = options.get("placement_group_bundles") or []
    return tuple({name: float(amount) for name, amount in bundle.items()} for bundle in bundles)
