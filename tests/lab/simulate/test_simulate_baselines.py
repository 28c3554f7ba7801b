"""Baselines that differ from plan-ahead in what their forecast knows, and failures in the middle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.forecasts import Forecast
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.results import SimulatedRun
from r2_serve.lab.simulate.simulation import SimulationOptions, simulate
from tests.lab.simulate.test_simulate_scaling import AHEAD
from tests.support.simulated import scripted_pool, workload

NODES = {"cluster": {"nodes": {"gpus_per_node": 1, "max_nodes": 8, "boot_s": 5, "idle_timeout_s": 20}}}


def first_start_s(run: SimulatedRun, app: str) -> float:
    return next(sample.t_s for sample in run.timeline if sample.deployments[f"{app}/Model"].target > 0)


def run_with(tmp_path: Path, forecast: Forecast, **fields: Any) -> SimulatedRun:
    scaling = {"autoscaling_config": AHEAD, "ray_actor_options": {"num_gpus": 1}}
    config = scripted_pool(tmp_path, small=scaling, large=scaling)
    arrivals = {"kind": "constant", "rate_per_s": 0.5}
    asked = workload(duration_s=40, arrivals=arrivals, **fields)
    return simulate(config, asked, Hardware.model_validate(NODES), SimulationOptions(forecast=forecast))


def test_forecast_knows_a_wave_from_its_calls_from_its_plan_or_from_the_arrival(tmp_path: Path) -> None:
    """The large model is called after the small one's wave. A rate sees calls, a plan the wave to come."""
    calls, plans, arrivals = (run_with(tmp_path, kind) for kind in ("calls", "plans", "arrivals"))
    large = [first_start_s(run, "m-large") for run in (arrivals, plans, calls)]
    assert large[0] <= large[1] < large[2] - 5
    assert first_start_s(arrivals, "m-small") <= first_start_s(plans, "m-small")
    assert all(record.status == 200 for run in (calls, plans, arrivals) for record in run.queries.records())


def test_oracle_starts_replicas_before_a_query_comes_that_nothing_announces(tmp_path: Path) -> None:
    """After a pause of 60 s all replicas have gone; only who knows the arrivals has some at its end."""
    bursts = {"kind": "on_off", "rate_per_s": 0.5, "on_s": 10, "off_s": 60}

    def replicas_at_68_s(forecast: Forecast) -> int:
        scaling = {"autoscaling_config": AHEAD, "ray_actor_options": {"num_gpus": 1}}
        config = scripted_pool(tmp_path, small=scaling, large=scaling)
        asked = workload(duration_s=80, arrivals={**bursts, "cv": 0})
        run = simulate(config, asked, Hardware(), SimulationOptions(forecast=forecast))
        at = next(sample for sample in run.timeline if sample.t_s >= 68)
        return at.deployments["m-small/Model"].target

    assert (replicas_at_68_s("plans"), replicas_at_68_s("arrivals")) == (0, 2)


def test_queries_outlive_a_replica_and_a_node_that_die_with_their_calls(tmp_path: Path) -> None:
    failures = [{"at_s": 20, "kills": "replica", "app": "m-small"}, {"at_s": 30, "kills": "node"}]
    quiet, failing = run_with(tmp_path, "plans"), run_with(tmp_path, "plans", failures=failures)
    assert [record.status for record in failing.queries.records()] == [200] * 20
    worst = [max(record.latency_s for record in run.queries.records()) for run in (quiet, failing)]
    assert worst[1] > worst[0] + 2


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ({"at_s": 1, "kills": "replica", "app": "m-smal"}, "did you mean 'm-small'?"),
        ({"at_s": 1, "kills": "replica", "app": "m-planner"}, "'m-planner' has no speed"),
        ({"at_s": 1, "kills": "node"}, "a node dies only where --hardware has some"),
    ],
)
def test_failure_of_what_is_not_there_is_refused(tmp_path: Path, failure: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as e:
        simulate(scripted_pool(tmp_path), workload(failures=[failure]), Hardware())
    assert told in e.value.message
