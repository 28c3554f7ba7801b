"""The simulated autoscaler against Ray Serve's own classes on the same numbers. No Ray is started."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r2_serve.config import SpeedConfig
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.autoscaler import Autoscaler, ScaledDeployment, serve_reads, with_delays
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment, DeploymentOptions
from r2_serve.lab.simulate.forecasts import Forecasts, WatchedShare
from r2_serve.lab.simulate.hardware import Cluster, Hardware
from r2_serve.lab.simulate.machines import Machines, Need
from r2_serve.lab.simulate.metrics_path import HandleReports
from r2_serve.lab.simulate.replicas import EngineReplica
from r2_serve.lab.simulate.results import SimulatedRun
from r2_serve.lab.simulate.simulation import SimulationOptions, simulate
from r2_serve.lab.simulate.system import own_policy
from tests.support.simulated import Caller, one_model, open_loop, scripted_pool, workload

SPEED = SpeedConfig(prefill_tokens_per_s=1000, decode_tokens_per_s=10, max_batch_size=4, batch_slowdown=0.2)


def scaled_deployment(clock: Clock, **autoscaling: Any) -> ScaledDeployment:
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(
        **{"min_replicas": 0, "max_replicas": 8, "target_ongoing_requests": 3, **autoscaling}
    )
    deployment = one_model(
        clock, SPEED, initial_replicas=config.min_replicas, start_s=6.0, max_ongoing_requests=6
    )
    reports = HandleReports.of(clock, deployment, config)
    return ScaledDeployment("app", deployment, reports, config, with_delays(own_policy("app", config)))


class ServesOwn:
    """`DeploymentAutoscalingState` of Ray Serve, fed with the reports of a simulated handle as a real handle
    sends them."""

    def __init__(self, scaled: ScaledDeployment, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        from ray.serve._private import autoscaling_state
        from ray.serve._private.common import DeploymentID

        patch.setattr(
            autoscaling_state, "time", SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now)
        )
        self._id = DeploymentID("Model", "app")
        self._state: Any = autoscaling_state.DeploymentAutoscalingState(self._id)
        self._state._config = scaled.config
        self._state._policy = with_delays(own_policy("app", scaled.config))
        self._scaled, self._clock = scaled, clock
        self._ids: dict[Any, Any] = {}

    def take_report(self) -> None:
        from ray.serve._private.common import RUNNING_REQUESTS_KEY, HandleMetricReport, TimeStampedValue

        notes = self._scaled.reports.last_report
        series: dict[str, list[Any]] = {}
        for note in notes:
            for replica, count in note.num_ongoing.items():
                series.setdefault(self._replica_id(replica).to_full_id_str(), []).append(
                    TimeStampedValue(note.at_s, count)
                )
        self._state.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=self._id,
                handle_id="handle",
                actor_id="actor",
                handle_source="UNKNOWN",
                queued_requests=[TimeStampedValue(note.at_s, note.num_queued) for note in notes],
                metrics={RUNNING_REQUESTS_KEY: series},
                timestamp=self._clock.now,
            )
        )

    def total_requests(self) -> float:
        self._state.update_running_replica_ids(
            [self._replica_id(replica) for replica in self._scaled.deployment.running]
        )
        return float(self._state.get_total_num_requests())

    def decide(self) -> int:
        return int(self._state.get_decision_num_replicas(self._scaled.deployment.target_num_replicas))

    def _replica_id(self, replica: object) -> Any:
        from ray.serve._private.common import ReplicaID

        return self._ids.setdefault(replica, ReplicaID(f"replica{len(self._ids)}", self._id))


def test_autoscaler_reads_and_decides_like_serves_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the same total and want the same replicas in five minutes of bursts from zero and back."""
    clock, draw = Clock(), random.Random(5)
    scaled = scaled_deployment(clock, upscale_delay_s=2, downscale_delay_s=8, look_back_period_s=12)
    caller, serve = Caller(clock), ServesOwn(scaled, clock, monkeypatch)
    autoscaler = Autoscaler(clock, [scaled])
    pairs: list[tuple[float, float]] = []
    targets: list[int] = []
    known_reports = 0

    def round_of_both() -> None:
        nonlocal known_reports
        if scaled.reports.num_reports != known_reports:
            known_reports = scaled.reports.num_reports
            serve.take_report()
        pairs.append((scaled.reports.total_requests(), serve.total_requests()))
        wanted = serve.decide()
        autoscaler.decide()
        targets.append(scaled.deployment.target_num_replicas)
        assert targets[-1] == wanted, f"at {clock.now:.1f} s"

    def gap_s() -> float:
        return draw.expovariate(4.0) + (60.0 if draw.random() < 0.02 else 0.0)

    open_loop(
        clock, 300, gap_s, lambda number: caller.ask(scaled.deployment, number, 10, draw.randint(5, 30))
    )
    clock.every(0.1, round_of_both)
    with serve_reads(clock, [scaled]):
        clock.run(until=600)
    assert len(caller.done_s) == 300
    assert max(targets) > 3 and targets[-1] == 0
    assert [ours for ours, _ in pairs] == pytest.approx([theirs for _, theirs in pairs], abs=1e-6)


def test_second_replica_comes_after_reports_and_delays_as_in_a_cluster() -> None:
    """A load for five comes at 60 s: a report within 10 s, the mean, 30 s of delay, then the cold start."""
    clock = Clock()
    scaled = scaled_deployment(
        clock, min_replicas=1, upscale_delay_s=30, downscale_delay_s=600, look_back_period_s=30
    )
    caller = Caller(clock)
    reached_s: list[float] = []
    clock.after(0.0, lambda n: caller.ask(scaled.deployment, n, 0, 1), 0)
    for number in range(1, 16):
        clock.after(60.0, lambda n: caller.ask(scaled.deployment, n, 0, 1e4), number)
    clock.every(0.1, Autoscaler(clock, [scaled]).decide)
    clock.every(0.1, lambda: reached_s.append(clock.now) if len(scaled.deployment.running) >= 5 else None)
    with serve_reads(clock, [scaled]):
        clock.run(until=200)
    assert 60 + 30 + 6 < reached_s[0] < 60 + 10 + 30 + 30 + 6


def test_later_cold_start_waits_for_a_note_and_another_call_or_the_next_report() -> None:
    """A handle reports at once when a call finds no replica, but only what it has noted by then.

    It has noted nothing at the first call, so it reports the call itself; later it reports the quiet time
    before. Notes are taken every 2.4 s and reports sent every 10 s.
    """
    clock = Clock()
    scaled = scaled_deployment(clock, upscale_delay_s=30, downscale_delay_s=2, look_back_period_s=12)
    caller = Caller(clock)
    for number, at_s in enumerate((0.0, 63.0, 66.0, 123.0)):
        clock.after(at_s, lambda n: caller.ask(scaled.deployment, n, 0, 10), number)
    clock.every(0.1, Autoscaler(clock, [scaled]).decide)
    with serve_reads(clock, [scaled]):
        for quiet_s in (60, 120):
            clock.run(until=quiet_s)
            assert scaled.deployment.target_num_replicas == 0
        clock.run(until=200)
    start_and_work_s = 6.0 + 1.0
    assert caller.done_s[0] == pytest.approx(0.1 + start_and_work_s, abs=0.11)
    assert caller.done_s[1] == pytest.approx(66.1 + start_and_work_s, abs=0.2), (
        "noted at 64.8 s, told of by the call at 66 s"
    )
    assert caller.done_s[3] == pytest.approx(130.1 + start_and_work_s, abs=0.11), (
        "noted at 124.8 s, told of by the report at 130 s"
    )


AHEAD = {
    "min_replicas": 0,
    "max_replicas": 4,
    "target_ongoing_requests": 3,
    "upscale_delay_s": 0,
    "downscale_delay_s": 4,
    "policy": {
        "policy_function": "r2_serve.scaling.serve_policy:PlanAhead",
        "policy_kwargs": {"cold_start_s": 3.5, "drain_s": 3},
    },
}


def run_with(
    tmp_path: Path, autoscaling: dict[str, Any], options: SimulationOptions | None = None
) -> SimulatedRun:
    config = scripted_pool(
        tmp_path, small={"autoscaling_config": autoscaling}, large={"autoscaling_config": autoscaling}
    )
    asked = workload(duration_s=120, arrivals={"kind": "on_off", "rate_per_s": 1.5, "on_s": 20, "off_s": 40})
    return simulate(config, asked, Hardware(), options)


def replica_seconds(run: SimulatedRun, app: str) -> float:
    return sum(
        sample.deployments[f"{app}/Model"].running + sample.deployments[f"{app}/Model"].starting
        for sample in run.timeline
    )


def mean_latency_s(run: SimulatedRun) -> float:
    latencies = [record.latency_s for record in run.queries.records()]
    return sum(latencies) / len(latencies)


def test_plan_ahead_policy_scales_before_the_wave_comes(
    tmp_path: Path,
) -> None:
    """The large model is needed after the small one's wave, so it starts while that wave runs."""
    stock = {key: value for key, value in AHEAD.items() if key != "policy"}
    reactive, ahead = run_with(tmp_path, stock), run_with(tmp_path, AHEAD)
    assert mean_latency_s(ahead) < 0.8 * mean_latency_s(reactive)
    first = next(sample.t_s for sample in ahead.timeline if sample.deployments["m-large/Model"].target > 0)
    first_reactive = next(
        sample.t_s for sample in reactive.timeline if sample.deployments["m-large/Model"].target > 0
    )
    assert first < first_reactive - 1


def test_failing_policy_is_an_error_with_its_text(tmp_path: Path) -> None:
    policy = {"policy_function": "tests.support.simulated:failing_policy"}
    with pytest.raises(ConfigError, match=r"policy of m-small/Model fails: RuntimeError: no decision today"):
        run_with(tmp_path, {**AHEAD, "policy": policy})


def test_forecasts_of_some_queries_stand_for_all(tmp_path: Path) -> None:
    """About one query in four is watched."""
    whole, sampled = run_with(tmp_path, AHEAD), run_with(tmp_path, AHEAD, SimulationOptions(most_watched=4))
    assert list(sampled.queries.records()) != list(whole.queries.records())
    assert replica_seconds(sampled, "m-small") == pytest.approx(replica_seconds(whole, "m-small"), rel=0.35)
    assert mean_latency_s(sampled) == pytest.approx(mean_latency_s(whole), rel=0.5)


def planned_calls(sampling: WatchedShare) -> tuple[float, ...]:
    """Forecast calls in progress, second by second, of sixty allocated queries of two steps each."""
    clock = Clock()
    deployment = one_model(clock, SPEED)
    forecasts = Forecasts(clock, "r2", {"m": "m"}, {"m/Model": deployment}, sampling)
    form = SimpleNamespace(edges=SimpleNamespace(inputs=((), (0,))))
    for index in range(60):
        query: Any = _Open(index, SimpleNamespace(form=form))
        forecasts.opened(query)
        forecasts.allocated(query)
    return forecasts.demand_of("m").planned


@dataclass(frozen=True, eq=False)
class _Open:
    """An open query as forecasts see it."""

    index: int
    sizes: Any
    models: tuple[str, ...] = ("m", "m")


def test_forecast_from_one_query_in_three_equals_that_of_all_if_all_are_alike() -> None:
    everything = planned_calls(WatchedShare())
    assert everything[:3] == pytest.approx((60.0, 60.0, 0.0)), (
        "a step is taken to need a second, as none was seen"
    )
    assert planned_calls(WatchedShare(stride=3, num_routers=2)) == pytest.approx(everything)
    assert WatchedShare.of(15, 200, 1) == WatchedShare()
    assert WatchedShare.of(100_000, 200, 100) == WatchedShare(stride=500, num_routers=20)


def deployment_on_machines(
    clock: Clock, cluster: dict[str, Any], *bundles: float
) -> tuple[Deployment, Machines]:
    machines = Machines(clock, Cluster.model_validate(cluster))
    options = DeploymentOptions(
        "m/Model", 10, -1, need=Need(bundles), start_s=lambda: 5.0, stop_s=0.0, hop_s=0.0, initial_replicas=0
    )
    return Deployment(
        clock, options, lambda d: EngineReplica(clock, SPEED, d.done), machines, random.Random(0)
    ), machines


def test_replicas_wait_for_nodes_which_are_paid_from_boot_to_end() -> None:
    clock = Clock()
    nodes = {"gpus_per_node": 4, "max_nodes": 2, "boot_s": 60, "idle_timeout_s": 100}
    deployment, machines = deployment_on_machines(clock, {"nodes": nodes, "gpu_usd_per_hour": 3600}, 2.0)
    deployment.scale_to(5)
    clock.run(until=59)
    assert (len(deployment.running), deployment.num_starting) == (0, 5)
    clock.run(until=66)
    assert (len(deployment.running), deployment.num_starting) == (4, 1), (
        "two nodes of four GPUs, two for each replica"
    )
    deployment.scale_to(0)
    clock.run(until=1000)
    assert machines.num_nodes == 0
    assert machines.cost_usd() == pytest.approx(8 * (66 + 100), rel=0.01), "eight GPUs at 1 USD a second"


def test_fixed_cluster_gives_its_gpus_in_the_order_of_requests() -> None:
    clock = Clock()
    deployment, machines = deployment_on_machines(clock, {"gpus": 3, "gpu_usd_per_hour": 3600}, 1.0)
    deployment.scale_to(5)
    clock.run(until=10)
    assert (len(deployment.running), deployment.num_starting) == (3, 2)
    deployment.scale_to(2)  # those that wait go first, then one that runs
    clock.run(until=20)
    assert (len(deployment.running), deployment.num_starting) == (2, 0)
    assert machines.cost_usd() == pytest.approx(3 * 10 + 2 * 10)
