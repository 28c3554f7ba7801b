"""The queue on its own: no place is lost or given twice, no matter which request leaves when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from r2_serve.errors import Overloaded, Stopping
from r2_serve.http.admission import Admission
from tests.support.waiting import until


async def test_places_are_given_in_order_of_arrival() -> None:
    admission, order, gate = Admission(1, 10), list[int](), asyncio.Event()

    async def visit(i: int) -> None:
        async with admission.slot():
            order.append(i)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for i in range(5):
            group.create_task(visit(i))
        await asyncio.sleep(0)
        gate.set()
    assert order == [0, 1, 2, 3, 4]
    assert (admission.num_running, admission.num_queued) == (0, 0)


async def test_place_given_to_a_cancelled_waiter_goes_to_the_next_one() -> None:
    admission, gate = Admission(1, 10), asyncio.Event()

    async def visit(then: Callable[[], object] = bool) -> None:
        async with admission.slot():
            await gate.wait()
        then()

    first = asyncio.create_task(visit(lambda: second.cancel()))
    second, third = asyncio.create_task(visit()), asyncio.create_task(visit())
    await until(lambda: admission.num_queued == 2)
    gate.set()
    await asyncio.wait([first, second, third])
    assert second.cancelled() and not third.cancelled()
    assert (admission.num_running, admission.num_queued) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_random_arrivals_and_cancellations_never_exceed_the_places(seed: int) -> None:
    rng, admission, num_inside = random.Random(seed), Admission(3, 5), 0

    async def visit() -> None:
        nonlocal num_inside
        async with admission.slot():
            num_inside += 1
            assert num_inside <= 3
            for _ in range(rng.randrange(5)):
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    break
            num_inside -= 1

    tasks = list[asyncio.Task[None]]()
    for _ in range(200):
        tasks.append(asyncio.create_task(visit()))
        if rng.random() < 0.5:
            rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        assert admission.num_queued <= 5
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(
        outcome is None or isinstance(outcome, Overloaded | asyncio.CancelledError) for outcome in outcomes
    )
    assert (admission.num_running, admission.num_queued, num_inside) == (0, 0, 0)


async def test_retry_after_follows_the_measured_service_time() -> None:
    now_s = 0.0
    admission = Admission(1, 0, clock=lambda: now_s)
    for _ in range(50):
        async with admission.slot():
            now_s += 20.0
    async with admission.slot():
        with pytest.raises(Overloaded) as refused:
            async with admission.slot():
                pass
    assert refused.value.retry_after_s == pytest.approx(20, abs=1)


async def test_closed_queue_serves_admitted_requests_and_reports_when_idle() -> None:
    admission, gates = Admission(1, 1), [asyncio.Event(), asyncio.Event()]

    async def work(gate: asyncio.Event) -> str:
        async with admission.slot():
            await gate.wait()
        return "served"

    inside = [asyncio.create_task(work(gate)) for gate in gates]
    await asyncio.sleep(0)
    admission.close()
    with pytest.raises(Stopping) as refused:
        await work(gates[0])
    assert (refused.value.status, refused.value.retry_after_s >= 1) == (503, True)
    idle = asyncio.create_task(admission.idle())
    for gate, task in zip(gates, inside):
        assert not idle.done()
        gate.set()
        assert await task == "served", "at work or in the queue"
    await asyncio.wait_for(idle, 5)
