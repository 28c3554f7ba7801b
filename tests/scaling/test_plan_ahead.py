"""The replicas for a forecast: the promises of the policy as arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.router.demand import EDGES_S, NUM_BUCKETS, ModelDemand
from r2_serve.scaling.plan_ahead import Fleet, replicas_needed


def profile(*spans: tuple[float, float, float]) -> tuple[float, ...]:
    """A demand from (start, end, number of calls in progress); start and end are edges of buckets."""
    return tuple(sum(n for a, b, n in spans if a <= EDGES_S[i] < b) for i in range(NUM_BUCKETS))


def needed(
    demand: ModelDemand, running: int = 0, ready_in_s: tuple[float, ...] = (), **settings: float
) -> int:
    fleet = Fleet(running, settings.pop("calls_each", 2.0), ready_in_s)
    return math.ceil(round(replicas_needed(demand, fleet, **{"lead_s": 8.0, "drain_s": 2.0, **settings}), 6))


def test_no_demand_needs_no_replica() -> None:
    assert needed(ModelDemand(), running=5) == 0


def test_wave_adds_replicas_just_in_time() -> None:
    wave = ModelDemand(planned=profile((12, 16, 8)))
    assert needed(wave, lead_s=8.0) == 0, "there is time: the next look will do"
    assert needed(wave, lead_s=12.0) == 4


def test_all_replicas_of_a_wave_are_asked_for_at_once_from_zero() -> None:
    """Eight calls of two seconds begin before a replica serves; they end two seconds after it does."""
    assert needed(ModelDemand(call_s=2.0, planned=profile((0, 2, 8)))) == 4


def test_burst_that_the_fleet_finishes_in_time_starts_no_replica() -> None:
    assert needed(ModelDemand(planned=profile((0, 1, 8))), running=2) == 2, (
        "16 calls at once, 8 s of 4 places"
    )
    assert needed(ModelDemand(planned=profile((0, 6, 12))), running=2) > 2, (
        "72 call-seconds do not fit into 32"
    )


def test_replica_needed_before_another_could_start_is_kept() -> None:
    wave = ModelDemand(planned=profile((4, 8, 6)))
    assert needed(wave, running=3, lead_s=8.0) == 3
    assert needed(wave, running=3, lead_s=4.0) == 3, (
        "at its edge: a replica asked for now would be just in time"
    )
    assert needed(wave, running=3, lead_s=2.0) == 0


def test_unplanned_calls_under_way_keep_their_replicas() -> None:
    assert needed(ModelDemand(num_active=5), running=3) == 3


def test_waiting_calls_are_a_backlog() -> None:
    """20 calls of 4 s on one replica of two places: 72 s of calls wait, 16 s are done in the 8 s of a cold
    start.
    """
    queue = ModelDemand(num_active=20, call_s=4.0)
    assert needed(queue, running=1, drain_s=4.0) > 1
    assert needed(queue, running=1, drain_s=4.0) > needed(queue, running=1, drain_s=16.0)


def test_nearly_ready_replica_counts() -> None:
    """One replica of two places finishes the calls in the 8 s of a cold start if it serves now."""
    queue = ModelDemand(num_active=8, call_s=1.0)
    assert needed(queue, ready_in_s=(0.1,)) == 1
    assert needed(queue, ready_in_s=(7.0,)) > 1


def test_busy_replica_counts_with_its_measured_concurrency() -> None:
    """40 calls of 2 s are 80 s of work.

    In 8 s a replica does 16 s of it at two calls at once, 64 s at eight.
    """
    queue = ModelDemand(num_active=40, call_s=2.0)
    assert needed(queue, running=1) > needed(queue.model_copy(update={"share_s": 0.25}), running=1)
    assert needed(queue.model_copy(update={"share_s": 2.0}), running=1) == needed(queue, running=1), (
        "and never less than its target"
    )


def test_trend_counts_by_its_weight() -> None:
    steady = ModelDemand(coming=(4.0,) * NUM_BUCKETS)
    assert needed(steady, running=2, trend=1.0) == 2
    assert needed(steady, running=2, trend=0.0) == 0


calls = st.lists(st.floats(0, 100), min_size=NUM_BUCKETS, max_size=NUM_BUCKETS).map(tuple)


@given(
    planned=calls,
    active=st.integers(0, 50),
    running=st.integers(0, 20),
    starting=st.lists(st.floats(0, 300), max_size=5).map(tuple),
    lead_s=st.floats(0.1, 300),
)
def test_more_plans_never_need_fewer_replicas(
    planned: tuple[float, ...], active: int, running: int, starting: tuple[float, ...], lead_s: float
) -> None:
    fleet = Fleet(running, 2.0, starting)

    def replicas(scale: float) -> float:
        demand = ModelDemand(num_active=active, planned=tuple(n * scale for n in planned))
        return replicas_needed(demand, fleet, lead_s=lead_s, drain_s=2.0)

    assert 0 <= replicas(1.0) <= replicas(1.5)
    assert replicas(1.0) == pytest.approx(replicas(1.0))
