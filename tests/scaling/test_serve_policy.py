"""The policy inside Ray Serve's own wrapper of delays and bounds, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from r2_serve.router.demand import NUM_BUCKETS, ModelDemand

pytestmark = [pytest.mark.ray, pytest.mark.smoke]

WAVE = ModelDemand(planned=(0.0, 0.0, 8.0, 8.0, *(0.0,) * (NUM_BUCKETS - 4)), call_s=2.0)


class Scaler:
    """One deployment's autoscaling: `tick` is what Serve's controller does ten times a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **scaling: Any) -> None:
        from ray.serve import autoscaling_policy
        from ray.serve.config import AutoscalingConfig

        from r2_serve.scaling import serve_policy

        self.now_s, self.demand, self.target, self.state = 1000.0, None, 0, {}
        monkeypatch.setattr(serve_policy, "latest_demand", lambda app: self.demand)
        monkeypatch.setattr(autoscaling_policy.time, "time", lambda: self.now_s)
        options = {
            "min_replicas": 0,
            "max_replicas": 8,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 3,
        }
        self.config = AutoscalingConfig(**{**options, **scaling})
        self._policy = autoscaling_policy._apply_autoscaling_config(
            serve_policy.PlanAhead(cold_start_s=4, drain_s=2)
        )

    def tick(self, running: int, *, requests: float = 0.0, seconds: float = 0.1) -> int:
        """The new target."""
        from ray.serve._private.common import DeploymentID
        from ray.serve.config import AutoscalingContext

        self.now_s += seconds
        context = AutoscalingContext(
            deployment_id=DeploymentID("Model", "m-large"),
            deployment_name="Model",
            app_name="m-large",
            current_num_replicas=running,
            target_num_replicas=self.target,
            running_replicas=[],
            total_num_requests=requests,
            total_queued_requests=None,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=8,
            policy_state=self.state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=self.config,
        )
        self.target, self.state = self._policy(context)
        return self.target


def test_planned_wave_starts_all_its_replicas_at_once_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = Scaler(monkeypatch)
    scaler.demand = WAVE
    assert scaler.tick(running=0) == 4


@pytest.mark.parametrize("less", [ModelDemand(), ModelDemand(num_active=1)], ids=["nothing", "a little"])
def test_dip_of_the_forecast_stops_no_starting_replica(
    less: ModelDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = Scaler(monkeypatch)
    for _ in range(3):
        scaler.demand = WAVE
        assert scaler.tick(running=0) == 4
        scaler.demand = less
        assert [scaler.tick(running=0) for _ in range(20)] == [4] * 20, (
            "two seconds, and the time counts anew each time"
        )
    assert [scaler.tick(running=0) for _ in range(45)][-1] < 4, (
        "but plans that are gone for good start nothing in the end"
    )


def test_calls_unknown_to_routers_count_as_in_the_stock_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training job calls a model by its handle while routers have no calls for it."""
    scaler = Scaler(monkeypatch, downscale_delay_s=0)
    scaler.demand = ModelDemand()
    scaler.target = 3
    assert [scaler.tick(running=3, requests=0.0 if i < 3 else 6.0) for i in range(20)][-1] == 3
    assert scaler.tick(running=3, requests=9.0) == 5, "two at a time"
    assert [scaler.tick(running=5, requests=0.0) for _ in range(2)] == [1, 0]


def test_calls_of_routers_count_once_although_serve_reports_them_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaler = Scaler(monkeypatch, downscale_delay_s=0, look_back_period_s=2, metrics_interval_s=1)
    scaler.demand, scaler.target = ModelDemand(num_active=6, call_s=1.0), 3
    assert scaler.tick(running=3, requests=4.0) == 3
    scaler.demand = ModelDemand()
    assert [scaler.tick(running=3, requests=5.0) for _ in range(25)][1:] == [0] * 24, "they are done"
    assert [scaler.tick(running=3, requests=5.0) for _ in range(20)][-1] == 3, "those are others"


def test_call_that_a_router_reports_late_is_not_an_unknown_call(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = Scaler(monkeypatch)
    scaler.demand, scaler.target = ModelDemand(num_active=2), 1
    assert scaler.tick(running=1) == 1
    assert [scaler.tick(running=1, requests=6.0) for _ in range(5)] == [1] * 5


def test_replica_that_is_about_to_serve_makes_another_needless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica starts in four seconds: just asked for, it is too late for the queue; nearly up, it is
    enough.
    """
    queue = ModelDemand(num_active=4, call_s=1.0)
    for waited_s, expected in ((0.1, 2), (3.9, 1)):
        scaler = Scaler(monkeypatch, upscale_delay_s=0)
        scaler.demand = ModelDemand(num_active=1, call_s=1.0)
        assert [scaler.tick(running=0) for _ in range(2)] == [1, 1]
        scaler.demand = queue
        assert scaler.tick(running=0, seconds=waited_s) == expected


def test_policy_works_on_after_a_step_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for step_s in (-3600.0, 3600.0):
        scaler = Scaler(monkeypatch)
        scaler.demand = WAVE
        assert scaler.tick(running=0) == 4
        assert scaler.tick(running=0, seconds=step_s) == 4
        scaler.demand = ModelDemand()
        assert [scaler.tick(running=0) for _ in range(150)][-1] == 0


def test_replicas_go_to_zero_after_the_delay_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = Scaler(monkeypatch)
    scaler.demand = WAVE
    scaler.tick(running=0)
    scaler.demand = ModelDemand()
    assert scaler.tick(running=4) == 4
    assert scaler.tick(running=4, seconds=3.0) == 1, "Serve goes to zero by way of one"
    scaler.tick(running=1)
    assert scaler.tick(running=1, seconds=3.0) == 0


def test_stock_policy_decides_when_no_router_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = Scaler(monkeypatch)
    assert scaler.tick(running=0, requests=6) == 1, "Serve's own cold start"
    assert scaler.tick(running=1, requests=6) == 3


def test_wrong_setting_fails_when_the_policy_is_made() -> None:
    from pydantic import ValidationError

    from r2_serve.scaling.serve_policy import PlanAhead

    with pytest.raises(ValidationError, match="cold_start"):
        PlanAhead(cold_start=4)


async def test_router_continues_to_write_forecasts_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from r2_serve.scaling import demand_board

    written: list[dict[str, ModelDemand]] = []
    forecasts = iter([ValueError("a forecast that cannot be made"), {"m-large": WAVE}])
    is_there = iter([OSError("no cluster yet"), None])

    class Board:
        @property
        def write(self) -> Board:
            return self

        async def remote(self, router: str, latest: dict[str, ModelDemand]) -> None:
            written.append(latest)
            raise asyncio.CancelledError

    def find() -> Board | None:
        found = next(is_there, Board())
        if isinstance(found, Exception):
            raise found
        return found

    def latest() -> dict[str, ModelDemand]:
        forecast = next(forecasts)
        if isinstance(forecast, Exception):
            raise forecast
        return forecast

    monkeypatch.setattr(demand_board, "_find_board", find)
    monkeypatch.setattr(demand_board, "LOOK_S", 0)
    with pytest.raises(asyncio.CancelledError):
        await demand_board.write_forecasts("router", latest)
    assert written == [{"m-large": WAVE}]


def test_policy_can_be_tried_without_a_cluster() -> None:
    """`r2-serve validate` calls a policy once; that must not start Ray."""
    import ray

    from r2_serve.scaling.demand_board import latest_demand

    assert not ray.is_initialized()
    assert latest_demand("m-large") is None
    assert not ray.is_initialized()
