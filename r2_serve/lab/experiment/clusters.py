"""Where cells run: on a local cluster that each starts for itself, or on a running one, to which each deploys its variant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Protocol

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import PublishError
from r2_serve.lab.experiment.cells import Cell, Plan
from r2_serve.lab.experiment.config import Experiment
from r2_serve.lab.load.records import ReplicaCount
from r2_serve.lab.load.replicas import DashboardReplicas

_POLL_S = 2.0


class Site(Protocol):
    """Where a cell runs."""

    @property
    def target(self) -> str:
        """What tells it from another."""
        ...

    def prepare(self, cell: Cell) -> None:
        """Before its load. Raises: PublishError."""
        ...

    def options(self, cell: Cell) -> list[str]:
        """For `r2-serve load`."""
        ...

    def environment(self, cell: Cell) -> dict[str, str]: ...


class LocalSite:
    """A cluster for each cell, on this machine."""

    target = "local"

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def prepare(self, cell: Cell) -> None:
        """Its command does all."""

    def options(self, cell: Cell) -> list[str]:
        experiment = self._experiment
        return [
            "--config",
            str(cell.config_path),
            "--nodes",
            str(experiment.nodes),
            "--gpus",
            str(experiment.gpus),
        ]

    def environment(self, cell: Cell) -> dict[str, str]:
        return {
            **os.environ,
            **self._experiment.environment,
            **self._experiment.variants[cell.variant].environment,
        }


class ClusterSite:
    """A running cluster, by its dashboard's REST interface."""

    def __init__(self, experiment: Experiment, plan: Plan, url: str, dashboard: Dashboard) -> None:
        self._experiment, self._plan, self._url, self._dashboard = experiment, plan, url, dashboard

    @property
    def target(self) -> str:
        return self._url

    def prepare(self, cell: Cell) -> None:
        """Deploys the variant, and waits until it is at rest: what the load before has scaled up would be a head start."""
        raw = self._plan.configs[cell.variant]
        self._dashboard.deploy(raw)
        for app in raw["applications"]:
            self._dashboard.wait_for(app["name"])
        replicas, give_up_at = (
            DashboardReplicas(self._dashboard),
            time.monotonic() + self._experiment.settle_s,
        )
        least = self._plan.least_replicas(cell.variant)
        while not is_at_rest(counts := replicas.read(), least):
            if time.monotonic() >= give_up_at:
                raise PublishError(
                    f"after {self._experiment.settle_s:g} s (settle_s) replicas are not at their least: {_told(counts)}"
                )
            time.sleep(_POLL_S)

    def options(self, cell: Cell) -> list[str]:
        return ["--url", self._url, "--dashboard", self._dashboard.url]

    def environment(self, cell: Cell) -> dict[str, str]:
        return dict(os.environ)


def is_at_rest(counts: Mapping[str, ReplicaCount], least: Mapping[str, int]) -> bool:
    """Whether every deployment that scales is at its least replicas, and none is starting or stopping."""
    present = [(counts[name], minimum) for name, minimum in least.items() if name in counts]
    return all(
        count.running == count.target == minimum and not count.starting and not count.stopping
        for count, minimum in present
    )


def command(cell: Cell, site: Site, experiment: Experiment) -> list[str]:
    """`r2-serve load` for a cell."""
    load = [
        sys.executable,
        "-m",
        "r2_serve.cli",
        "load",
        str(cell.workload_path),
        "--seed",
        str(cell.seed),
        "--out",
        str(cell.directory),
    ]
    price = [
        "--gpu-usd-per-hour",
        f"{experiment.gpu_usd_per_hour:g}",
        "--timeout",
        f"{experiment.timeout_s:g}",
        "--set-aside",
    ]
    return [*load, *site.options(cell), *price]


def _told(counts: Mapping[str, ReplicaCount]) -> str:
    return ", ".join(
        f"{name} {count.running} running, {count.starting} starting" for name, count in counts.items()
    )
