"""Publishes a fitted gate into the running router: a live change of its `user_config`, and the way back.

Every router replica reads the file before anything changes, as a replica that cannot would keep its old
gates in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from r2_serve.cluster.serve_api import Dashboard, check_deployed
from r2_serve.errors import ConfigError
from r2_serve.ops.publishing.config_file import changed, with_gate
from r2_serve.ops.publishing.plan import Pool
from r2_serve.ops.publishing.steps import ConfigFile, Tell, build_once, restored, route, step
from r2_serve.router.gates import read_gate_file
from r2_serve.serve_config.document import suggestion

CHECK_IMPORT_PATH = "r2_serve.app:build_gate_check"


@dataclass(frozen=True)
class GateChange:
    """A gate of virtual models gets another file."""

    gate: str
    router_app: str
    file: str
    moves: Mapping[str, str]
    """The file before, by virtual model."""
    pool: tuple[str, ...]
    """The models that all these virtual models have."""
    routed: str
    """The next text of the config file."""


def plan_gate(
    text: str, path: Path, *, gate: str | None = None, virtual_models: Sequence[str] = (), keep: int = 2
) -> GateChange:
    """The publication of the fitted gate at `path`; `keep` earlier files stay named in the config.

    Raises: ConfigError if the file is none, asks models that a pool lacks, or it is not clear which gate of
    the config it is for.
    """
    pool = Pool(text)
    name, targets = _targets(pool, gate, virtual_models)
    file = str(path.resolve())
    for target in targets:
        read_gate_file(name, file, pool.virtual(target).pool)

    def earlier(target: str) -> tuple[str, ...]:
        config = pool.virtual(target).gates[name]
        return (*(old for old in config.earlier if old != file), str(config.file))[-keep:]

    used = [target for target in targets if pool.virtual(target).gates[name].file == file]
    if used:
        raise ConfigError(f"gate {name!r} of {used[0]!r} uses {file} already: a new fit needs a new path")
    return _change(pool, text, name, file, {target: earlier(target) for target in targets})


def plan_gate_rollback(
    text: str, gate: str, *, to: str | None = None, virtual_models: Sequence[str] = ()
) -> GateChange:
    """The way back to file `to`, or to the one used before. Raises: ConfigError."""
    pool = Pool(text)
    name, targets = _targets(pool, gate, virtual_models)
    before = {target: pool.virtual(target).gates[name].earlier for target in targets}
    for target, files in before.items():
        if not files or (to is not None and to not in files):
            known = ", ".join(files) or "none"
            raise ConfigError(f"gate {name!r} of {target!r} has no such earlier file (earlier: {known})")
    found = {files[-1] if to is None else to for files in before.values()}
    if len(found) > 1:
        raise ConfigError("the virtual models used different files before: name one with --virtual-model")
    (file,) = found
    rest = {target: files[: files.index(file)] for target, files in before.items()}
    return _change(pool, text, name, file, rest)


def _targets(pool: Pool, gate: str | None, asked: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The gate's name, and the virtual models that have it as a fitted one."""
    pool.check_virtual_models(asked)
    fitted = {
        target: [name for name, config in pool.virtual(target).gates.items() if config.file is not None]
        for target in asked or pool.virtual_models
    }
    names = sorted({name for found in fitted.values() for name in found})
    name = gate or (names[0] if len(names) == 1 else "")
    if not name:
        raise ConfigError(f"name the gate with --gate: the fitted gates are {names or 'none'}")
    targets = tuple(target for target, found in fitted.items() if name in found)
    if not targets:
        raise ConfigError(
            f"no virtual model has a fitted gate {name!r}{suggestion(name, names)}; "
            f"write `gates: {{{name}: {{file: PATH}}}}` and deploy that first"
        )
    return name, targets


def _change(
    pool: Pool, text: str, name: str, file: str, earlier: Mapping[str, tuple[str, ...]]
) -> GateChange:
    changes = [with_gate(pool.router_app, target, name, file, kept) for target, kept in earlier.items()]
    routed = changed(text, *changes)
    Pool(routed)
    pools = [set(pool.virtual(target).pool) for target in earlier]
    return GateChange(
        gate=name,
        router_app=pool.router_app,
        file=file,
        moves={target: str(pool.virtual(target).gates[name].file) for target in earlier},
        pool=tuple(sorted(set.intersection(*pools))),
        routed=routed,
    )


def route_gate(change: GateChange, file: ConfigFile, dashboard: Dashboard, tell: Tell) -> None:
    """Have every router replica read the file, then route by it.

    Raises: PublishError; file and routing are then what they were.
    """
    original = yaml.safe_load(file.original)
    check_deployed(original, dashboard.applications())
    (router,) = (app for app in original["applications"] if app["name"] == change.router_app)
    checker = {
        "name": f"publish-gate-{change.gate}",
        "route_prefix": None,
        "import_path": CHECK_IMPORT_PATH,
        "args": {
            "app": change.router_app,
            "gate": change.gate,
            "file": change.file,
            "pool": list(change.pool),
            "timeout_s": dashboard.timeout_s,
        },
        **({"runtime_env": router["runtime_env"]} if "runtime_env" in router else {}),
    }
    with step(tell, f"read by every replica of {change.router_app}"):
        build_once(checker, original, dashboard, f"gate {change.gate!r}")
    with (
        step(tell, f"gate {change.gate} of {', '.join(change.moves)} routed to {change.file}"),
        restored(file, dashboard, file.original, "still as before"),
    ):
        route(change.routed, change.router_app, file, dashboard)
