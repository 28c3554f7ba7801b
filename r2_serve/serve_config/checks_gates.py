"""Gates and fitted files that could not work here: a file that is none, a function that cannot be imported,
evidence that no model gives."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence

from r2_serve.config import GateConfig, ModelConfig, VirtualModelConfig
from r2_serve.errors import ConfigError
from r2_serve.router.fitted_plan import read_fitted_plan
from r2_serve.router.gates import own_check, read_gate_file
from r2_serve.serve_config.applications import ServeFile
from r2_serve.serve_config.document import KeyPath, Problem
from r2_serve.types.gates import Agreement, Check, Confidence

_MATH = "compares formulas, which needs the extra `eval`: pip install 'route-and-reason[eval]'"


def check_gates(file: ServeFile) -> Iterator[Problem]:
    """The gates of every virtual model, and of every candidate on trial."""
    if file.router is None or file.routing is None:
        return
    by_name = {model.name: model for model in file.router.models}
    for place, virtual in file.routing.routers:
        base = file.routing.virtual_models[place[1]]
        for gate, config in virtual.gates.items():
            if virtual is not base and (config, virtual.pool) == (base.gates.get(gate), base.pool):
                continue
            path = (*file.routing_path, *place, "gates", gate)
            found = _fitted if config.file is not None else _written
            yield from found(file, path, gate, config, virtual, by_name)


def check_plan_files(file: ServeFile) -> Iterator[Problem]:
    """The `plan_file` of every virtual model, and of every candidate on trial."""
    if file.routing is None:
        return
    for place, virtual in file.routing.routers:
        base = file.routing.virtual_models[place[1]]
        if virtual.plan_file is None or (virtual is not base and virtual.plan_file == base.plan_file):
            continue
        path = (*file.routing_path, *place, "plan_file")
        try:
            read_fitted_plan(virtual.plan_file)
        except ConfigError as e:
            yield file.error(path, e.message)
        if virtual.plan != "auto":
            yield file.warning(path, f"`plan_file` has no effect with `plan: {virtual.plan}`")


def _fitted(
    file: ServeFile,
    path: KeyPath,
    name: str,
    config: GateConfig,
    virtual: VirtualModelConfig,
    by_name: dict[str, ModelConfig],
) -> Iterator[Problem]:
    try:
        fitted = read_gate_file(name, str(config.file), virtual.pool)
    except ConfigError as e:
        yield file.error((*path, "file"), e.message)
        return
    if fitted.grader == "math" and importlib.util.find_spec("pebble") is None:
        yield file.error((*path, "file"), f"the gate {_MATH}")
    for gate in fitted.policy.gates:
        yield from _leaving(file, path, gate.order, by_name)
    reads = any(gate.reads_confidence for gate in fitted.policy.gates)
    asked = {model for gate in fitted.policy.gates for model in gate.order}
    yield from _unsure(file, path, sorted(asked) if reads else [], by_name)


def _written(
    file: ServeFile,
    path: KeyPath,
    name: str,
    config: GateConfig,
    virtual: VirtualModelConfig,
    by_name: dict[str, ModelConfig],
) -> Iterator[Problem]:
    yield from _leaving(file, path, config.ask, by_name)
    for place, evidence in enumerate(config.accept):
        here = (*path, "accept", place)
        match evidence:
            case Agreement(by="math") if importlib.util.find_spec("pebble") is None:
                yield file.error((*here, "by"), f"`math` {_MATH}")
            case Agreement(by="executed") if shutil.which("bwrap") is None:
                text = "`executed` runs code in a sandbox, which needs bubblewrap: apt-get install bubblewrap"
                yield file.warning((*here, "by"), f"{text}; until then no answers agree")
            case Confidence():
                yield from _unsure(file, here, list(config.ask[:-1]), by_name)
            case Check():
                try:
                    own_check(evidence.function)
                except ConfigError as e:
                    yield file.error((*here, "function"), e.message)


def _leaving(
    file: ServeFile, path: KeyPath, order: Sequence[str], by_name: dict[str, ModelConfig]
) -> Iterator[Problem]:
    """Models whose prompts are to stay on premises, before a model that is not there."""
    asked = [by_name[name] for name in order if name in by_name]
    for place, model in enumerate(asked):
        outside = [later.name for later in asked[place + 1 :] if not model.may_fall_back_on(later)]
        if outside:
            message = f"prompts of {model.name!r} are to stay on premises, but the gate goes on to {outside}"
            yield file.warning(path, message)


def _unsure(
    file: ServeFile, path: KeyPath, models: list[str], by_name: dict[str, ModelConfig]
) -> Iterator[Problem]:
    """Models whose confidence a gate reads although they report no log-probabilities."""
    mute = [name for name in models if name in by_name and "logprobs" not in by_name[name].abilities]
    if mute:
        message = f"{', '.join(mute)} reports no log-probabilities, so that its confidence is never known"
        yield file.warning(path, message)
