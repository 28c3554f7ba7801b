"""An experiment file, and its reader: everything wrong with it at once, each with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from r2_serve.config import Config, EnvName
from r2_serve.errors import ConfigError
from r2_serve.lab.workload import SCRIPTED_POOL, Workload, example_names, example_path, load_workload
from r2_serve.serve_config.sections import read_file

SCRIPTED = "scripted"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
Patch = dict[str, Any]
"""Merged key by key; a null takes a key away."""


def _once_each(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"{twice} stand there more than once: each seed is one run")
    return seeds


class ApplicationPatch(Config):
    """What one application has otherwise."""

    autoscaling_config: Patch = Field(default_factory=dict)


class Variant(Config):
    """How one variant differs from the config."""

    autoscaling_config: Patch = Field(default_factory=dict)
    """Merged into that of each deployment that has one."""
    applications: dict[str, ApplicationPatch] = Field(default_factory=dict)
    """The same for single applications, by name, on top."""
    routing: Patch = Field(default_factory=dict)
    """Merged into the `user_config` of the router."""
    environment: dict[EnvName, str] = Field(default_factory=dict)
    """On top of the experiment's. Local clusters only."""


class Experiment(Config):
    """See the module's text."""

    name: Name
    config: str
    """Serve config, looked for beside this file; `scripted`: that of the example workloads."""
    workloads: tuple[str, ...] = Field(min_length=1)
    """Files, looked for beside this one, or names of shipped examples."""
    seeds: Annotated[tuple[int, ...], AfterValidator(_once_each)] = Field(default=(0, 1, 2), min_length=1)
    variants: dict[Name, Variant] = Field(min_length=1)
    """The first is what the others are compared with."""
    nodes: int = Field(default=0, ge=0)
    """Local clusters: Ray nodes beside the head. 0: one node alone."""
    gpus: int = Field(default=0, ge=0)
    """Local clusters: GPUs that a node pretends to have."""
    environment: dict[EnvName, str] = Field(default_factory=dict)
    """Local clusters: variables of all their processes, such as Ray Serve's own switches."""
    gpu_usd_per_hour: float = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=300.0, gt=0)
    """Of one request."""
    settle_s: float = Field(default=600.0, ge=0)
    """Running clusters: longest wait, before each load, for the replicas to be back at their least."""


class Loaded(Config):
    """An experiment with the files that it names."""

    experiment: Experiment
    config_path: Path
    workloads: dict[str, Workload]
    """By name."""


def load_experiment(path: Path) -> Loaded:
    """Raises: ConfigError listing every error."""
    experiment = read_file(path, Experiment)
    workloads = [load_workload(_workload_path(path.parent, name)) for name in experiment.workloads]
    by_name = {workload.name: workload for workload in workloads}
    if len(by_name) != len(workloads):
        raise ConfigError(f"{path}: two workloads have one name: {[workload.name for workload in workloads]}")
    config_path = SCRIPTED_POOL if experiment.config == SCRIPTED else path.parent / experiment.config
    return Loaded(experiment=experiment, config_path=config_path, workloads=by_name)


def _workload_path(directory: Path, name: str) -> Path:
    return (
        directory / name if (directory / name).exists() or name not in example_names() else example_path(name)
    )
