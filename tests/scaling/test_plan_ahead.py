"""Replicas for a forecast: what the policy promises, as arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.router.demand import EDGES_S, NUM_BUCKETS, ModelDemand
from r2_serve.scaling.plan_ahead import Fleet, replicas_needed


def profile(*spans: tuple[float, float, float]) -> tuple[float, ...]:
    """Calls in progress from, until (both edges of buckets), how many."""
    return tuple(sum(n for a, b, n in spans if a <= EDGES_S[i] < b) for i in range(NUM_BUCKETS))


def needed(
    demand: ModelDemand, running: int = 0, ready_in_s: tuple[float, ...] = (), **settings: float
) -> int:
    fleet = Fleet(running, settings.pop("calls_each", 2.0), ready_in_s)
    return math.ceil(round(replicas_needed(demand, fleet, **{"lead_s": 8.0, "drain_s": 2.0, **settings}), 6))


def test_nothing_planned_needs_nothing() -> None:
    assert needed(ModelDemand(), running=5) == 0


def test_a_wave_is_answered_when_a_replica_asked_for_now_would_just_be_ready() -> None:
    wave = ModelDemand(planned=profile((12, 16, 8)))
    assert needed(wave, lead_s=8.0) == 0, "there is time: the next look will do"
    assert needed(wave, lead_s=12.0) == 4


def test_from_zero_it_asks_for_all_at_once() -> None:
    """Eight calls of two seconds that begin before anything could serve them are through two seconds after it does."""
    assert needed(ModelDemand(call_s=2.0, planned=profile((0, 2, 8)))) == 4


def test_a_burst_that_the_fleet_finishes_first_starts_none() -> None:
    assert needed(ModelDemand(planned=profile((0, 1, 8))), running=2) == 2, (
        "16 calls at once, 8 s of 4 places"
    )
    assert needed(ModelDemand(planned=profile((0, 6, 12))), running=2) > 2, (
        "72 call-seconds do not fit into 32"
    )


def test_a_replica_that_will_be_needed_before_another_could_start_is_kept() -> None:
    wave = ModelDemand(planned=profile((4, 8, 6)))
    assert needed(wave, running=3, lead_s=8.0) == 3
    assert needed(wave, running=3, lead_s=4.0) == 3, (
        "at its edge: a replica asked for now would be just in time"
    )
    assert needed(wave, running=3, lead_s=2.0) == 0


def test_calls_under_way_keep_their_replicas_even_if_nobody_planned_them() -> None:
    assert needed(ModelDemand(num_active=5), running=3) == 3


def test_calls_that_wait_are_a_backlog() -> None:
    """20 calls of 4 s on one replica of two places: 72 s of calls wait, 16 of them are done in the 8 s that another takes."""
    queue = ModelDemand(num_active=20, call_s=4.0)
    assert needed(queue, running=1, drain_s=4.0) > 1
    assert needed(queue, running=1, drain_s=4.0) > needed(queue, running=1, drain_s=16.0)


def test_a_replica_that_is_nearly_up_is_counted_on() -> None:
    """One replica of two places does them in the 8 s that another would take, if it is there by now."""
    queue = ModelDemand(num_active=8, call_s=1.0)
    assert needed(queue, ready_in_s=(0.1,)) == 1
    assert needed(queue, ready_in_s=(7.0,)) > 1


def test_a_busy_replica_does_what_it_was_seen_to_do_at_once_whatever_its_target() -> None:
    """40 calls of 2 s wait: 80 s of calls. At two at once 8 s are 16 of them; at eight at once nearly all."""
    queue = ModelDemand(num_active=40, call_s=2.0)
    assert needed(queue, running=1) > needed(queue.model_copy(update={"share_s": 0.25}), running=1)
    assert needed(queue.model_copy(update={"share_s": 2.0}), running=1) == needed(queue, running=1), (
        "and never less than its target"
    )


def test_a_trend_is_followed_as_far_as_it_is_trusted() -> None:
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
