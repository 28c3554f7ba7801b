"""Publishes a fitted file into the running router, at once or on trial, and goes back: a gate, or the choice
of `plan: auto`. Each is a live change of the router's `user_config`.

Every router replica reads the file before anything changes, as a replica that cannot would keep its old
routing in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from r2_serve.cluster.serve_api import Dashboard, check_deployed
from r2_serve.config import VirtualModelConfig
from r2_serve.errors import ConfigError
from r2_serve.ops.publishing.config_file import changed, with_fields
from r2_serve.ops.publishing.plan import Pool
from r2_serve.ops.publishing.steps import ConfigFile, Tell, build_once, restored, route, step
from r2_serve.ops.publishing.trial import TrialShares
from r2_serve.router.fitted_plan import FittedPlanFile, read_fitted_plan
from r2_serve.router.gates import read_gate_file
from r2_serve.serve_config.document import YamlMapping, suggestion

CHECK_IMPORT_PATH = "r2_serve.app:build_fitted_check"
_OTHER_SIGNS = re.compile(r"[^A-Za-z0-9._-]+")


class Place(Protocol):
    """The place of a fitted file in a virtual model."""

    @property
    def what(self) -> str:
        """The place in words."""
        ...

    @property
    def gate(self) -> str | None:
        """The name of the gate; None for `plan_file`."""
        ...

    def file(self, virtual: VirtualModelConfig) -> str | None:
        """The file that is used now."""
        ...

    def earlier(self, virtual: VirtualModelConfig) -> tuple[str, ...]:
        """The files that were used before, the latest last."""
        ...

    def fields(self, file: str, earlier: Sequence[str]) -> YamlMapping:
        """The fields of the virtual model that name these files."""
        ...

    def check(self, file: str, virtual: VirtualModelConfig) -> None:
        """Raises: ConfigError if the virtual model cannot use the file."""
        ...


@dataclass(frozen=True)
class GatePlace:
    """`gates.NAME.file`."""

    gate: str

    @property
    def what(self) -> str:
        return f"gate {self.gate}"

    def file(self, virtual: VirtualModelConfig) -> str | None:
        return virtual.gates[self.gate].file

    def earlier(self, virtual: VirtualModelConfig) -> tuple[str, ...]:
        return virtual.gates[self.gate].earlier

    def fields(self, file: str, earlier: Sequence[str]) -> YamlMapping:
        return {"gates": {self.gate: {"file": file, "earlier": list(earlier) or None}}}

    def check(self, file: str, virtual: VirtualModelConfig) -> None:
        read_gate_file(self.gate, file, virtual.pool)


@dataclass(frozen=True)
class PlanPlace:
    """`plan_file`."""

    gate: None = None
    what: str = "plan_file"

    def file(self, virtual: VirtualModelConfig) -> str | None:
        return virtual.plan_file

    def earlier(self, virtual: VirtualModelConfig) -> tuple[str, ...]:
        return virtual.earlier_plan_files

    def fields(self, file: str, earlier: Sequence[str]) -> YamlMapping:
        return {"plan_file": file, "earlier_plan_files": list(earlier) or None}

    def check(self, file: str, virtual: VirtualModelConfig) -> None:
        read_fitted_plan(file)
        if virtual.plan != "auto":
            raise ConfigError(f"plan_file has no effect with `plan: {virtual.plan}`: set `plan: auto` first")


@dataclass(frozen=True)
class FileChange:
    """A place of virtual models gets another file, or tries it."""

    place: Place
    router_app: str
    file: str
    moves: Mapping[str, str | None]
    """The file now, by virtual model."""
    pool: tuple[str, ...]
    """The models that all these virtual models have."""
    routed: str
    """The next text of the config file."""
    candidate: str | None = None
    """The name of the file on trial; None if it is used at once."""


def plan_file_change(
    text: str,
    path: Path,
    *,
    gate: str | None = None,
    virtual_models: Sequence[str] = (),
    keep: int = 2,
    shares: TrialShares | None = None,
) -> FileChange:
    """The publication of the fitted file at `path`; `keep` earlier files stay named in the config.

    With `shares` it goes on trial, as a candidate with the name of the file.

    Raises: ConfigError if the file is none or does not fit, or it is not clear which gate it is for.
    """
    pool, file = Pool(text), str(path.resolve())
    is_plan = gate is None and _kind(path) == FittedPlanFile.model_fields["kind"].default
    place, targets = (_plan_targets if is_plan else _gate_targets)(pool, gate, virtual_models)
    fields = {}
    for target in targets:
        virtual = pool.virtual(target)
        place.check(file, virtual)
        if (now := place.file(virtual)) == file:
            raise ConfigError(f"{place.what} of {target!r} uses {file} already: a new fit needs a new path")
        before = [*(old for old in place.earlier(virtual) if old != file), *([now] if now else [])]
        fields[target] = place.fields(file, before[-keep:])
    candidate = None if shares is None else candidate_name(path)
    return _change(pool, text, place, file, fields, shares, candidate)


def plan_file_rollback(
    text: str, *, gate: str | None = None, to: str | None = None, virtual_models: Sequence[str] = ()
) -> FileChange:
    """The way back to file `to`, or to the one used before; of `plan_file` if no gate is named.

    Raises: ConfigError.
    """
    pool = Pool(text)
    place, targets = (_gate_targets if gate else _plan_targets)(pool, gate, virtual_models)
    before = {target: place.earlier(pool.virtual(target)) for target in targets}
    for target, files in before.items():
        if not files or (to is not None and to not in files):
            known = ", ".join(files) or "none"
            raise ConfigError(f"{place.what} of {target!r} has no such earlier file (earlier: {known})")
    found = {files[-1] if to is None else to for files in before.values()}
    if len(found) > 1:
        raise ConfigError("the virtual models used different files before: name one with --virtual-model")
    (file,) = found
    fields = {target: place.fields(file, files[: files.index(file)]) for target, files in before.items()}
    return _change(pool, text, place, file, fields)


def candidate_name(path: Path) -> str:
    """The name of a file as a candidate: that of the file, in the signs that names may have."""
    return _OTHER_SIGNS.sub("-", path.stem).strip("._-")[:100] or "fit"


def _kind(path: Path) -> object:
    """The format that a file names; None if it names none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found.get("kind") if isinstance(found, dict) else None


def _gate_targets(pool: Pool, gate: str | None, asked: Sequence[str]) -> tuple[Place, tuple[str, ...]]:
    """The gate, and the virtual models that have it as a fitted one."""
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
    return GatePlace(name), targets


def _plan_targets(pool: Pool, gate: str | None, asked: Sequence[str]) -> tuple[Place, tuple[str, ...]]:
    """The virtual models that are asked for; else those with a `plan_file`, or the only one there is."""
    pool.check_virtual_models(asked)
    known = pool.virtual_models
    targets = tuple(asked) or tuple(name for name in known if pool.virtual(name).plan_file is not None)
    if not targets and len(known) > 1:
        raise ConfigError(f"no virtual model has a plan_file: name one of {[*known]} with --virtual-model")
    return PlanPlace(), targets or known


def _change(
    pool: Pool,
    text: str,
    place: Place,
    file: str,
    fields: Mapping[str, YamlMapping],
    shares: TrialShares | None = None,
    candidate: str | None = None,
) -> FileChange:
    changes = [
        with_fields(pool.router_app, target, new)
        if shares is None or candidate is None
        else pool.tried(target, candidate, _without_none(new), shares)
        for target, new in fields.items()
    ]
    if shares is None:
        for target in fields:
            pool.check_no_trial(target)
    routed = changed(text, *changes)
    Pool(routed)
    pools = [set(pool.virtual(target).pool) for target in fields]
    return FileChange(
        place=place,
        router_app=pool.router_app,
        file=file,
        moves={target: place.file(pool.virtual(target)) for target in fields},
        pool=tuple(sorted(set.intersection(*pools))),
        routed=routed,
        candidate=candidate,
    )


def _without_none(fields: YamlMapping) -> YamlMapping:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def route_file(change: FileChange, file: ConfigFile, dashboard: Dashboard, tell: Tell) -> None:
    """Have every router replica read the file, then route by it or try it.

    Raises: PublishError; file and routing are then what they were.
    """
    original, what = yaml.safe_load(file.original), change.place.what
    check_deployed(original, dashboard.applications())
    (router,) = (app for app in original["applications"] if app["name"] == change.router_app)
    checker = {
        "name": f"publish-{what.replace(' ', '-')}",
        "route_prefix": None,
        "import_path": CHECK_IMPORT_PATH,
        "args": {
            "app": change.router_app,
            "gate": change.place.gate,
            "file": change.file,
            "pool": list(change.pool),
            "timeout_s": dashboard.timeout_s,
        },
        **({"runtime_env": router["runtime_env"]} if "runtime_env" in router else {}),
    }
    with step(tell, f"read by every replica of {change.router_app}"):
        build_once(checker, original, dashboard, what)
    how = f"tries {change.file}" if change.candidate else f"routed to {change.file}"
    with (
        step(tell, f"{what} of {', '.join(change.moves)} {how}"),
        restored(file, dashboard, file.original, "still as before"),
    ):
        route(change.routed, change.router_app, file, dashboard)
