"""What a router knows of the calls to come, on a clock of the test's own."""

from __future__ import annotations

import pytest

from r2_serve.router.demand import EDGES_S, NUM_BUCKETS, RATE_WINDOW_S, Demand, ModelDemand, total
from r2_serve.types import Allocation, CallRecord, Plan, Subtask, Work

CHAIN = Plan(
    subtasks=(
        Subtask(id=1, text="a"),
        Subtask(id=2, text="b"),
        Subtask(id=3, text="join #1 #2", depends_on=(1, 2)),
    )
)
MODELS = Allocation(models=("small", "small", "large"))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def demand(clock: Clock) -> Demand:
    """One that knows that `small` takes 2 s and `large` 4 s."""
    demand = Demand(clock)
    for model, call_s in (("small", 2.0), ("large", 4.0)):
        demand.learn(answered(model, call_s))
    return demand


def answered(
    model: str, service_s: float, *, waited_s: float = 0.0, share_s: float | None = None
) -> CallRecord:
    """A call that waited for a replica, which then worked on it and on others."""
    work = Work(service_s=service_s, share_s=service_s if share_s is None else share_s)
    return CallRecord(stage="execute", model=model, end_s=waited_s + service_s, work=work)


def seconds(profile: tuple[float, ...]) -> float:
    """Total number of calls in progress."""
    return sum(calls * (EDGES_S[i + 1] - EDGES_S[i]) for i, calls in enumerate(profile))


def at(profile: tuple[float, ...], time_s: float) -> float:
    return next(profile[i] for i in range(NUM_BUCKETS) if EDGES_S[i] <= time_s < EDGES_S[i + 1])


def test_forecast_shows_when_the_waves_of_a_plan_reach_each_model(demand: Demand) -> None:
    with demand.query("r2") as query:
        query.plan(CHAIN, MODELS)
        forecast = demand.forecast()
    small, large = forecast["small"].planned, forecast["large"].planned
    assert [at(small, t) for t in (0, 1, 2, 3)] == [2, 2, 0, 0]
    assert [at(large, t) for t in (1, 2, 3)] == [0, 1, 1]
    assert seconds(small) == pytest.approx(4) and seconds(large) == pytest.approx(4)


def test_started_call_is_active_and_its_end_brings_the_next_wave_nearer(demand: Demand, clock: Clock) -> None:
    with demand.query("r2") as query:
        query.plan(CHAIN, MODELS)
        with query.calling(1, "small"), query.calling(2, "small"):
            assert demand.forecast()["small"].num_active == 2
            clock.now_s += 0.5
            assert seconds(demand.forecast()["small"].planned) == pytest.approx(3)
        forecast = demand.forecast()
        assert forecast["small"].num_active == 0 and seconds(forecast["small"].planned) == 0
        assert at(forecast["large"].planned, 0) == 1


def test_late_call_delays_the_subtasks_that_wait_for_it(demand: Demand, clock: Clock) -> None:
    with demand.query("r2") as query:
        query.plan(CHAIN, MODELS)
        with query.calling(1, "small"):
            clock.now_s += 50
            forecast = demand.forecast()
            assert seconds(forecast["small"].planned) > 0, "it is still at work, and so is its model"
            assert seconds(forecast["large"].planned) == pytest.approx(4), (
                "and what waits for it is still to come"
            )


def test_ended_query_needs_no_replica_however_it_ended(demand: Demand) -> None:
    with pytest.raises(RuntimeError), demand.query("r2") as query:
        query.plan(CHAIN, MODELS)
        with query.calling(1, "small"):
            raise RuntimeError("failed")
    forecast = demand.forecast()
    assert all(
        seconds(forecast[model].planned) == 0 and forecast[model].num_active == 0
        for model in ("small", "large")
    )


def test_failed_call_does_not_change_the_expected_duration(demand: Demand) -> None:
    demand.learn(CallRecord(stage="execute", model="small", outcome="failed", end_s=0.01))
    assert demand.call_s("small") == 2.0


def test_waiting_for_a_replica_does_not_count_as_the_models_time(demand: Demand) -> None:
    """Every call of a burst from zero has waited for the cold start."""
    for _ in range(100):
        demand.learn(answered("small", 2.0, waited_s=30.0))
    assert demand.call_s("small") == 2.0


def test_duration_of_a_hosted_model_is_that_of_its_calls(demand: Demand) -> None:
    demand.learn(CallRecord(stage="execute", model="hosted", start_s=1.0, end_s=4.0))
    forecast = demand.forecast()["hosted"]
    assert (forecast.call_s, forecast.share_s) == (3.0, None)


def test_shares_show_how_many_calls_a_busy_replica_runs(demand: Demand) -> None:
    for _ in range(100):
        demand.learn(answered("small", 2.0, share_s=0.25))
    forecast = demand.forecast()["small"]
    assert forecast.share_s is not None and forecast.call_s / forecast.share_s == 8


def test_query_without_a_plan_counts_as_the_queries_before_it(demand: Demand, clock: Clock) -> None:
    with demand.query("r2") as first:
        clock.now_s += 1.5  # decompose and allocate
        first.plan(CHAIN, MODELS)
    with demand.query("r2"):
        forecast = demand.forecast()
        assert seconds(forecast["small"].planned) == pytest.approx(4)
        assert at(forecast["small"].planned, 0) == 0 and at(forecast["large"].planned, 0) == 0
        clock.now_s += 1.0
        assert at(demand.forecast()["small"].planned, 0) == pytest.approx(1.0), (
            "two calls that start in half a second"
        )
    with demand.query("other"):
        assert seconds(demand.forecast()["small"].planned) == 0, "each name has its own past"


def test_steady_arrivals_are_expected_to_continue_and_later_to_end(demand: Demand, clock: Clock) -> None:
    """Little's law: two calls of 2 s in each query, five queries in ten seconds, so two calls in progress."""
    for _ in range(5):
        with demand.query("r2") as query:
            query.plan(CHAIN, MODELS)
    coming = demand.forecast()["small"].coming
    assert at(coming, 20) == pytest.approx(5 / RATE_WINDOW_S * 2 * 2)
    assert at(coming, 0) < at(coming, 1) < at(coming, 20), "those that come later are not there yet"
    clock.now_s += RATE_WINDOW_S + 1
    assert seconds(demand.forecast()["small"].coming) == 0


def test_demand_stays_with_the_allocated_model_when_a_fallback_is_called(demand: Demand) -> None:
    with demand.query("r2") as query:
        query.plan(CHAIN, MODELS)
        with query.calling(1, "large"):
            assert demand.num_active("small") == 1 and demand.num_sent("small") == 0
            assert demand.num_active("large") == 0 and demand.num_sent("large") == 1


def test_forecasts_of_several_routers_add_up() -> None:
    one = {"m": ModelDemand(num_active=1, call_s=2.0, planned=(1.0,) * NUM_BUCKETS)}
    other = {
        "m": ModelDemand(num_active=2, call_s=3.0, planned=(0.5,) * NUM_BUCKETS),
        "n": ModelDemand(num_active=4),
    }
    summed = total([one, other])
    assert (
        summed["m"] == ModelDemand(num_active=3, call_s=3.0, planned=(1.5,) * NUM_BUCKETS)
        and summed["n"].num_active == 4
    )


def test_arrivals_are_forgotten_when_no_forecast_is_read(demand: Demand, clock: Clock) -> None:
    def num_objects() -> int:
        return sum(len(history._arrivals_s) for history in demand._history.values())

    for _ in range(1000):
        with demand.query("r2"):
            clock.now_s += 1.0
    assert num_objects() <= RATE_WINDOW_S + 1
