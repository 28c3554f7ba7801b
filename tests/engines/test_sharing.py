"""A replica's time, divided among its calls: alone a call has all of it, and nothing is lost or counted
twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.engines.sharing import SharedTime


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_single_call_uses_the_whole_time_of_its_replica() -> None:
    clock = Clock()
    with SharedTime(clock).call() as work:
        clock.now_s += 3.0
        assert (work().service_s, work().share_s) == (3.0, 3.0)


def test_concurrent_calls_share_the_time_with_failed_ones_too() -> None:
    clock = Clock()
    time = SharedTime(clock)
    with time.call() as work:
        clock.now_s += 1.0
        with pytest.raises(RuntimeError), time.call():
            clock.now_s += 2.0
            raise RuntimeError("failed")
        clock.now_s += 1.0
        assert (work().service_s, work().share_s) == (4.0, 3.0)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=12))
def test_shares_add_up_to_the_busy_time(spans: list[tuple[float, float]]) -> None:
    clock = Clock()
    time, marks, total_s, busy_s = SharedTime(clock), {}, 0.0, 0.0
    moments = sorted(
        [(start_s, 0, i) for i, (start_s, _) in enumerate(spans)]
        + [(sum(span), 1, i) for i, span in enumerate(spans)]
    )
    at_s = 0.0
    for moment_s, is_end, i in moments:
        busy_s += (moment_s - at_s) * bool(marks)
        clock.now_s, at_s = 50.0 + moment_s, moment_s
        if not is_end:
            marks[i] = time.begin()
        else:
            total_s += time.share_s(marks.pop(i))
            time.end()
    assert total_s == pytest.approx(busy_s, abs=1e-6)
