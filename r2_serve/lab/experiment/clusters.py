"""The place of a cell's run: a local cluster of its own, a running one that gets each variant, or none: a
simulation."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ServeApiError
from r2_serve.lab.experiment.cells import SIMULATED, Cell, ExperimentPlan
from r2_serve.lab.experiment.config import Experiment, LoadedExperiment
from r2_serve.lab.experiment.variants import scaled_deployments
from r2_serve.lab.load.records import ReplicaCount
from r2_serve.lab.load.replicas import dashboard_replicas
from r2_serve.lab.load.run_directory import claim
from r2_serve.lab.load.summary import RunInfo
from r2_serve.lab.simulate.simulation import SimulationOptions, simulate
from r2_serve.serve_config import load

_POLL_S = 2.0


class LocalSite:
    """A cluster on this machine for each cell."""

    target = "local"
    """The name that distinguishes this place from another."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment

    def prepare(self, cell: Cell) -> None:
        """The command starts its cluster itself."""

    def options(self, cell: Cell) -> list[str]:
        """Options of `r2-serve load`."""
        nodes, gpus = str(self._experiment.nodes), str(self._experiment.gpus)
        return ["--config", str(cell.config_path), "--nodes", nodes, "--gpus", gpus]

    def environment(self, cell: Cell) -> dict[str, str]:
        own = self._experiment.variants[cell.variant].environment
        return {**os.environ, **self._experiment.environment, **own}


class ClusterSite:
    """A running cluster, reached by its dashboard's REST interface."""

    def __init__(self, experiment: Experiment, plan: ExperimentPlan, url: str, dashboard: Dashboard) -> None:
        self._settle_s, self._plan, self.target, self._dashboard = experiment.settle_s, plan, url, dashboard

    def prepare(self, cell: Cell) -> None:
        """Deploys the variant and waits until it is at rest: replicas already up would be a head start."""
        raw = self._plan.configs[cell.variant]
        self._dashboard.deploy(raw)
        for app in raw["applications"]:
            self._dashboard.wait_for(app["name"])
        read, give_up_at = dashboard_replicas(self._dashboard), time.monotonic() + self._settle_s
        least = scaled_deployments(raw)
        while not is_at_rest(counts := read().deployments, least):
            if time.monotonic() >= give_up_at:
                found = ", ".join(
                    f"{name} {c.running} running, {c.starting} starting" for name, c in counts.items()
                )
                raise ServeApiError(
                    f"after {self._settle_s:g} s (settle_s) replicas are not at their least number: {found}"
                )
            time.sleep(_POLL_S)

    def options(self, cell: Cell) -> list[str]:
        return ["--url", self.target, "--dashboard", self._dashboard.url]

    def environment(self, cell: Cell) -> dict[str, str]:
        return dict(os.environ)


Site = LocalSite | ClusterSite


def simulate_cell(cell: Cell, loaded: LoadedExperiment) -> None:
    """Simulates a cell in place of running it. Raises: ConfigError."""
    experiment, hardware = loaded.experiment, loaded.hardware[cell.variant]
    claim(cell.directory, set_aside=True)
    cell.mark()
    options = SimulationOptions(cell.seed, forecast=experiment.variants[cell.variant].forecast)
    run = simulate(load(cell.config_path, with_imports=True), cell.workload, hardware, options)
    info = RunInfo.of(
        cell.workload,
        SIMULATED,
        seed=cell.seed,
        gpu_usd_per_hour=experiment.gpu_usd_per_hour or hardware.cluster.gpu_usd_per_hour,
        node_idle_timeout_s=experiment.node_idle_timeout_s,
    )
    run.write(cell.directory, info, has_rows=False)


def is_at_rest(counts: Mapping[str, ReplicaCount], least: Mapping[str, int]) -> bool:
    """True if every deployment that scales is at its least number of replicas, and none is changing."""
    return all(
        count.running == count.target == least[name] and not count.starting and not count.stopping
        for name, count in counts.items()
        if name in least
    )


def command(cell: Cell, site: Site, experiment: Experiment) -> list[str]:
    """The `r2-serve load` of a cell."""
    load = [sys.executable, "-m", "r2_serve.cli", "load", str(cell.workload_path), "--seed", str(cell.seed)]
    price, timeout = f"{experiment.gpu_usd_per_hour:g}", f"{experiment.timeout_s:g}"
    limits = ["--gpu-usd-per-hour", price, "--timeout", timeout, "--set-aside"]
    if experiment.node_idle_timeout_s is not None:
        limits += ["--node-idle-timeout", f"{experiment.node_idle_timeout_s:g}"]
    return [*load, "--out", str(cell.directory), *site.options(cell), *limits]
