"""An experiment file and its reader, which lists every error with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from r2_serve.config import Config, EnvName
from r2_serve.errors import ConfigError
from r2_serve.lab.examples import example_names, example_path
from r2_serve.lab.simulate.forecasts import Forecast
from r2_serve.lab.simulate.hardware import Hardware, load_hardware
from r2_serve.lab.workload import EXAMPLES, SCRIPTED_POOL, Workload, load_workload
from r2_serve.serve_config.sections import read_file

SCRIPTED = "scripted"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
Raw = dict[str, Any]
"""A Serve config, or a part of one, as data."""
Patch = Annotated[Raw, Field(default_factory=dict)]
"""Data that is merged key by key; a null removes a key."""


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"{twice} stand there more than once: each seed is one run")
    return seeds


class ApplicationPatch(Config):
    """Changes to one application."""

    autoscaling_config: Patch
    options: Patch
    """Changes to the deployment itself, such as `ray_actor_options`."""


class Variant(Config):
    """Changes of one variant to the config."""

    autoscaling_config: Patch
    """Changes to the `autoscaling_config` of each deployment that has one."""
    applications: dict[str, ApplicationPatch] = Field(default_factory=dict)
    """The same for single applications, by name, on top."""
    routing: Patch
    """Changes to the `user_config` of the router."""
    environment: dict[EnvName, str] = Field(default_factory=dict)
    """Variables on top of the experiment's. Local clusters only."""
    hardware: Patch
    """Changes to the hardware file. Simulations only."""
    forecast: Forecast = "plans"
    """What plan-ahead's forecast knows. Other kinds than `plans` are baselines, in simulations only."""


class Experiment(Config):
    """An experiment file."""

    name: Name
    config: str
    """Serve config, relative to this file; `scripted` is the config of the example workloads."""
    workloads: tuple[str, ...] = Field(min_length=1)
    """Files, relative to this one, or names of shipped examples."""
    seeds: Annotated[tuple[int, ...], AfterValidator(_once_each)] = Field(default=(0, 1, 2), min_length=1)
    variants: dict[Name, Variant] = Field(min_length=1)
    """Variants by name. The others are compared with the first."""
    hardware: str | None = None
    """Hardware file of `--simulate`, relative to this file; None for scripted speeds without overheads."""
    nodes: int = Field(default=0, ge=0)
    """Local clusters: Ray nodes besides the head. 0 is one node alone."""
    gpus: int = Field(default=0, ge=0)
    """Local clusters: GPUs that a node pretends to have."""
    environment: dict[EnvName, str] = Field(default_factory=dict)
    """Local clusters: variables of all their processes, such as Ray Serve's own switches."""
    node_idle_timeout_s: float | None = Field(default=None, ge=0)
    """If given, a node counts only while it is in use and so long after; see `r2-serve load --help`."""
    gpu_usd_per_hour: float = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit of one request."""
    settle_s: float = Field(default=600.0, ge=0)
    """Running clusters: longest wait before each load until the replicas are back at their least number."""


class LoadedExperiment(Config):
    """An experiment with the files that it names."""

    experiment: Experiment
    config_path: Path
    workloads: dict[str, Workload]
    """Workloads by name."""
    hardware: dict[str, Hardware]
    """The hardware of each variant, with its changes."""


def load_experiment(path: Path) -> LoadedExperiment:
    """Reads an experiment file. Raises: ConfigError listing every error."""
    experiment = read_file(path, Experiment)
    workloads = [load_workload(_workload_path(path.parent, name)) for name in experiment.workloads]
    by_name = {workload.name: workload for workload in workloads}
    if len(by_name) != len(workloads):
        raise ConfigError(f"{path}: two workloads have one name: {[workload.name for workload in workloads]}")
    config_path = SCRIPTED_POOL if experiment.config == SCRIPTED else path.parent / experiment.config
    hardware = _hardware(path.parent, experiment)
    return LoadedExperiment(
        experiment=experiment, config_path=config_path, workloads=by_name, hardware=hardware
    )


def _hardware(directory: Path, experiment: Experiment) -> dict[str, Hardware]:
    """Raises: ConfigError if the file, or a variant's changes, make no valid hardware."""
    base = Hardware() if experiment.hardware is None else load_hardware(directory / experiment.hardware)
    data, found = base.model_dump(mode="json", exclude_defaults=True), {}
    for name, variant in experiment.variants.items():
        try:
            found[name] = Hardware.model_validate(merged(data, variant.hardware))
        except ValidationError as e:
            faults = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in e.errors())
            raise ConfigError(f"variant {name!r}: its hardware is not valid: {faults}") from e
    return found


def merged(value: object, patch: Raw) -> Raw:
    """`value`, a mapping or None, with `patch` over it."""
    result = dict(value) if isinstance(value, Mapping) else {}
    for key, new in patch.items():
        if new is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), new) if isinstance(new, dict) else new
    return result


def _workload_path(directory: Path, name: str) -> Path:
    is_example = not (directory / name).exists() and name in example_names(EXAMPLES)
    return example_path(name, EXAMPLES) if is_example else directory / name
