"""Whether the replicas of a config fit the nodes of a cluster, asked before Serve starts them.

Serve itself waits for ever for a node that is large enough: on a cluster that does not grow nothing comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from r2_serve.errors import ConfigError
from r2_serve.ops.deploy_files.needs import (
    Replicas,
    Resources,
    has_room,
    largest_first,
    parts,
    replicas_of,
)
from r2_serve.serve_config import ServeConfig

_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Keys of `ray_actor_options` by Ray's names of resources."""
_GIB = 2**30


def check_room(config: ServeConfig, nodes: Sequence[Resources]) -> None:
    """Places the replicas with which the applications of `config` start, largest first.

    Raises: ConfigError, which names the deployment without room, the numbers and what to write.
    """
    started = _started(config)
    wanted = largest_first(part for entry in started for part in entry.num_at_start * parts(entry, nodes))
    there: list[list[Replicas]] = [[] for _ in nodes]
    for entry in wanted:
        pairs = zip(nodes, there, strict=True)
        place = next((placed for node, placed in pairs if has_room(placed, entry, node)), None)
        if place is None:
            raise ConfigError(_too_large(entry, nodes) or _too_many(entry, wanted, nodes))
        place.append(entry)


def room_at_start(config: ServeConfig) -> str:
    """What the applications of `config` ask for at their start, and which deployments get a default share."""
    wanted = [entry for entry in _started(config) for _ in range(entry.num_at_start)]
    names = dict.fromkeys(name for entry in wanted for name in entry.takes if entry.takes[name])
    total = ", ".join(_text(name, _sum(name, (entry.takes for entry in wanted))) for name in names)
    named = {
        (app["name"], entry["name"])
        for app in config.raw["applications"]
        for entry in app.get("deployments", ())
        if entry.get("ray_actor_options") or entry.get("placement_group_bundles")
    }
    by_default = ", ".join(
        f"{entry.application}/{entry.deployment} {entry.takes['CPU']:g}"
        for entry in _started(config)
        if (entry.application, entry.deployment) not in named
    )
    default = f"; CPU shares by default, as the file names none: {by_default}" if by_default else ""
    return f"asks at its start for {total or 'nothing'}{default}"


def _started(config: ServeConfig) -> list[Replicas]:
    """The deployments of the router and its models, without applications of others."""
    apps = {config.router_app_name, *config.model_apps}
    return [entry for entry in replicas_of(config) if entry.application in apps]


def _too_large(entry: Replicas, nodes: Sequence[Resources]) -> str | None:
    """The message for a replica that fits no node, not even an empty one; None if one fits."""
    if any(has_room([], entry, node) for node in nodes):
        return None
    for name, amount in entry.takes.items():
        largest = max((node.get(name, 0) for node in nodes), default=0)
        if largest < amount:
            asked = f"a replica asks for {_text(name, amount)}, and {_text(name, largest)} is the most"
            return f"{_name(entry)}: {asked} that a node here has. {_advice(entry, name)}"
    asked = ", ".join(_text(name, amount) for name, amount in entry.takes.items())
    return f"{_name(entry)}: no node here has all that a replica asks for ({asked}). {_advice(entry, 'CPU')}"


def _too_many(entry: Replicas, wanted: Sequence[Replicas], nodes: Sequence[Resources]) -> str:
    """The message for a replica that fits an empty node, but not together with the others."""
    for name in entry.takes:
        asked, has = (
            _sum(name, (other.takes for other in wanted)),
            _sum(name, nodes),
        )
        if asked > has:
            shares = {f"{other.application}/{other.deployment}": other for other in wanted}
            parts = ", ".join(
                f"{key} {other.num_at_start} x {other.takes[name]:g}"
                for key, other in shares.items()
                if name != "memory" and other.takes.get(name)
            )
            have = f"there are {_text(name, has)} for the {_text(name, asked)} of all replicas"
            return f"{_name(entry)} finds no room: {have}{parts and f' ({parts})'}. {_advice(entry, name)}"
    limit = f" of at most {entry.max_per_node} of its replicas each" if entry.max_per_node else ""
    return (
        f"{_name(entry)} finds no room: its {entry.num_at_start} replicas do not fit the {len(nodes)} "
        f"nodes{limit} with the others. {_advice(entry, 'CPU')}"
    )


def _advice(entry: Replicas, name: str) -> str:
    if name == "GPU":
        other = "put a hosted model in its place, or take a machine with more GPUs"
        seen = "Ray counts the GPUs that the NVIDIA driver shows, within `--gpus` and CUDA_VISIBLE_DEVICES"
        return f"Write fewer `num_gpus` (or replicas) for it, {other}. {seen}"
    option = f"{_OPTIONS[name]}: ..." if name in _OPTIONS else f"resources: {{{name}: ...}}"
    option = "num_cpus: 0.1" if name == "CPU" else option
    return (
        f"Write a smaller share under `deployments` of application {entry.application!r}, such as "
        f"{{name: {entry.deployment}, ray_actor_options: {{{option}}}}}, or fewer replicas"
    )


def _name(entry: Replicas) -> str:
    return f"deployment {entry.deployment} of application {entry.application!r}"


def _sum(name: str, resources: Iterable[Resources]) -> float:
    return round(sum(each.get(name, 0) for each in resources), 6)


def _text(name: str, amount: float) -> str:
    return f"{amount / _GIB:.2f} GiB of memory" if name == "memory" else f"{amount:g} {name}"
