"""The ready queue agrees with an independent model of it; failures and cancellations stop the rest."""

import asyncio
import contextlib
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.router.executor import execute
from r2_serve.types import Plan, Subtask
from tests.support.cpu import loops
from tests.support.virtual_time import now_s, run, turns


def plan_of(*depends_on: tuple[int, ...]) -> Plan:
    return Plan(subtasks=tuple(Subtask(id=i, text="step", depends_on=d) for i, d in enumerate(depends_on, 1)))


@st.composite
def plans(draw: st.DrawFn, max_size: int = 9) -> Plan:
    size = draw(st.integers(1, max_size))
    return plan_of(
        *(
            tuple(sorted(draw(st.sets(st.integers(1, i - 1), max_size=3)))) if i > 1 else ()
            for i in range(1, size + 1)
        )
    )


class Stage:
    """Subtasks that run until the test ends them."""

    def __init__(self, plan: Plan, max_parallel: int) -> None:
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.inputs: dict[int, dict[int, str]] = {}
        self.running: dict[int, asyncio.Future[str]] = {}
        self.whole = asyncio.ensure_future(execute(plan, self._run, max_parallel=max_parallel))

    async def _run(self, subtask: Subtask, inputs: dict[int, str]) -> str:
        self.started.append(subtask.id)
        self.inputs[subtask.id] = inputs
        end = self.running[subtask.id] = asyncio.get_running_loop().create_future()
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled.append(subtask.id)
            raise
        finally:
            del self.running[subtask.id]


class Expected:
    """The promise of the executor, written plainly: all ready subtasks run, longest chain first."""

    def __init__(self, plan: Plan, max_parallel: int) -> None:
        self.needs = {s.id: set(s.depends_on) for s in plan.subtasks}
        self.done: set[int] = set()
        self.running: set[int] = set()
        self.max_parallel = max_parallel
        self._start()

    def end(self, subtask_id: int) -> None:
        self.running.remove(subtask_id)
        self.done.add(subtask_id)
        self._start()

    def _start(self) -> None:
        height = cache(
            lambda i: 1 + max((height(j) for j, needed in self.needs.items() if i in needed), default=0)
        )
        ready = [
            i for i, needed in self.needs.items() if needed <= self.done and i not in self.done | self.running
        ]
        for subtask_id in sorted(ready, key=lambda i: (-height(i), i))[
            : self.max_parallel - len(self.running)
        ]:
            self.running.add(subtask_id)


@given(plans(), st.integers(1, 9), st.data())
def test_exactly_the_ready_subtasks_run(plan: Plan, max_parallel: int, data: st.DataObject) -> None:
    async def check() -> None:
        expected, stage = Expected(plan, max_parallel), Stage(plan, max_parallel)
        await turns()
        while expected.running:
            assert set(stage.running) == expected.running
            ended = data.draw(st.sampled_from(sorted(expected.running)))
            stage.running[ended].set_result(f"answer {ended}")
            expected.end(ended)
            await turns()
        results = await stage.whole
        assert now_s() == 0.0, "a subtask waited for a timer"
        assert results == {s.id: f"answer {s.id}" for s in plan.subtasks}
        assert sorted(stage.started) == [s.id for s in plan.subtasks], "each runs exactly once"
        assert stage.inputs == {s.id: {d: f"answer {d}" for d in s.depends_on} for s in plan.subtasks}

    run(check())


@given(plans(), st.data())
def test_plan_takes_as_long_as_its_critical_path(plan: Plan, data: st.DataObject) -> None:
    service_s = {s.id: data.draw(st.integers(1, 20), label=f"service time of {s.id}") for s in plan.subtasks}
    chain_s: dict[int, int] = {}
    for s in plan.subtasks:
        chain_s[s.id] = service_s[s.id] + max((chain_s[d] for d in s.depends_on), default=0)

    async def makespan_s() -> float:
        async def work(subtask: Subtask, inputs: dict[int, None]) -> None:
            await asyncio.sleep(service_s[subtask.id])

        await execute(plan, work, max_parallel=len(plan.subtasks))
        return now_s()

    assert run(makespan_s()) == pytest.approx(max(chain_s.values()))


@given(plans(), st.integers(1, 9), st.data())
def test_failed_subtask_cancels_siblings_and_starts_nothing_new(
    plan: Plan, max_parallel: int, data: st.DataObject
) -> None:
    async def check() -> None:
        stage = Stage(plan, max_parallel)
        await turns()
        for _ in range(data.draw(st.integers(0, len(plan.subtasks) - 1))):
            stage.running[data.draw(st.sampled_from(sorted(stage.running)))].set_result("ok")
            await turns()
        siblings, started = set(stage.running), list(stage.started)
        failing = data.draw(st.sampled_from(sorted(siblings)))
        cause, error = OSError("cable"), ValueError("broken")
        error.__cause__ = cause
        stage.running[failing].set_exception(error)
        with pytest.raises(ValueError) as caught:
            await stage.whole
        assert caught.value is error
        assert caught.value.__cause__ is cause
        assert set(stage.cancelled) == siblings - {failing}
        assert stage.started == started

    run(check())


@given(plans(), st.integers(1, 9))
def test_cancelling_from_outside_cancels_every_subtask(plan: Plan, max_parallel: int) -> None:
    async def check() -> None:
        stage = Stage(plan, max_parallel)
        await turns()
        siblings = set(stage.running)
        stage.whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stage.whole
        assert set(stage.cancelled) == set(stage.started) == siblings

    run(check())


def test_success_and_failure_at_the_same_time_start_nothing_more() -> None:
    async def check() -> None:
        stage = Stage(plan_of((), (), (2,), (1,)), 4)
        await turns()
        stage.running[1].set_exception(ValueError("broken"))
        stage.running[2].set_result("ok")
        with pytest.raises(ValueError, match="broken"):
            await stage.whole
        assert stage.started == [1, 2]

    run(check())


def test_subtask_that_answers_although_cancelled_starts_nothing_more() -> None:
    started = []

    async def stubborn(subtask: Subtask, inputs: dict[int, str]) -> str:
        started.append(subtask.id)
        if subtask.id == 1:
            raise ValueError("broken")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        return "answered anyway"

    with pytest.raises(ValueError, match="broken"):
        run(execute(plan_of((), (), (2,)), stubborn, max_parallel=4))
    assert sorted(started) == [1, 2]


def test_outside_cancellation_wins_over_failures_that_subtasks_make_of_it() -> None:
    async def check() -> None:
        async def translating(subtask: Subtask, inputs: dict[int, str]) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as e:
                raise ConnectionError("connection closed") from e
            return "never"

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await execute(plan_of((), ()), translating, max_parallel=2)

    run(check())


def test_independent_subtasks_overlap() -> None:
    async def makespan_s() -> float:
        async def work(subtask: Subtask, inputs: dict[int, None]) -> None:
            await asyncio.sleep(1)

        await execute(plan_of((), (), (), (1, 2, 3)), work, max_parallel=16)
        return now_s()

    assert run(makespan_s()) == 2.0


def test_slow_branch_does_not_hold_up_another() -> None:
    """1 -> 3 while 2 is slow: level by level, 3 would wait for 2."""

    async def check() -> None:
        stage = Stage(plan_of((), (), (1,), (2, 3)), 16)
        await turns()
        stage.running[1].set_result("ok")
        await turns()
        assert set(stage.running) == {2, 3}
        stage.whole.cancel()
        await asyncio.wait([stage.whole])

    run(check())


def test_scheduling_a_subtask_costs_no_more_in_a_plan_of_ten_thousand() -> None:
    async def work(subtask: Subtask, inputs: dict[int, int]) -> int:
        return subtask.id

    plan = plan_of((), *((i,) for i in range(1, 10_000)))
    assert loops(lambda: asyncio.run(execute(plan, work, max_parallel=16))) < 150


def test_subtask_that_is_cancelled_by_other_code_is_a_failure() -> None:
    async def work(subtask: Subtask, inputs: dict[int, str]) -> str:
        broken = asyncio.get_running_loop().create_future()
        broken.cancel()
        return await broken

    with pytest.raises(RuntimeError, match="subtask 1 was cancelled, but not by the executor"):
        run(execute(plan_of((), (1,)), work, max_parallel=4))


def test_failed_plan_does_not_cancel_its_task() -> None:
    """Else an enclosing timeout would surface as a cancellation."""

    async def check() -> int:
        async def work(subtask: Subtask, inputs: dict[int, str]) -> str:
            await asyncio.sleep(1)
            raise ValueError("broken")

        with pytest.raises(ValueError):
            await execute(plan_of((), ()), work, max_parallel=4)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run(check()) == 0
