"""A model that keeps failing is rested, other models take its calls, and one call probes it later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from r2_serve.calls.budget import Budget
from r2_serve.calls.caller import Caller, CallResult, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.config import CooldownConfig, LimitsConfig
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import EngineRefused, EngineUnavailable, InvalidReply, ReplicaDied
from r2_serve.http.metrics import Metrics
from tests.support.faults import json_reply
from tests.support.hosted_stand import RIGHT, asked, standing
from tests.support.in_process import model, pool_of, user
from tests.support.upstream import completion
from tests.support.virtual_time import now_s, run

DOWN, REFUSED = EngineUnavailable("down"), EngineRefused("too long")
REST = CooldownConfig(after_failures=3, first_s=10, longest_s=60)
SPEC = CallSpec(render=lambda codec: list(user("x")), stage="execute")


class Pool:
    """`small`, which falls back on `large`; each call is a request of its own, with one attempt per model."""

    def __init__(
        self, small: Any, *, has_fallback: bool = True, cooldown: CooldownConfig = REST, **engine: Any
    ) -> None:
        self.small = ScriptedEngine(small, **engine)
        self.large = ScriptedEngine(["from large"])
        self.pool = pool_of(
            (model("small", fallbacks=("large",) if has_fallback else ()), self.small),
            (model("large"), self.large),
        )
        self.cooldown = cooldown
        self.ledger = Ledger(Budget())

    async def ask(self, *, max_attempts: int = 1) -> str:
        limits = LimitsConfig(max_attempts=max_attempts, cooldown=self.cooldown)
        result: CallResult = await Caller(self.pool, self.ledger, limits, uniform=lambda: 1.0).call(
            "small", SPEC
        )
        return result.answer

    async def ask_times(self, count: int) -> list[str]:
        return [await self.ask() for _ in range(count)]

    @property
    def num_asked(self) -> int:
        return len(self.small.calls)

    @property
    def rests(self) -> bool:
        return self.pool["small"].cooldown.is_resting


def test_calls_go_straight_to_the_fallback_after_failures_in_a_row() -> None:
    pool = Pool([DOWN])
    assert run(pool.ask_times(10)) == ["from large"] * 10
    assert pool.num_asked == 3, "the fourth call is the first that knows"
    assert [call.passed_over for call in pool.ledger.calls if call.model == "large"] == [()] * 3 + [
        ("small",)
    ] * 7


@pytest.mark.parametrize("between", ["yes", REFUSED])
def test_answer_resets_the_count_of_failures(between: Any) -> None:
    """A refusal is about one call, and an answer as to whether the model is there."""
    pool = Pool([DOWN, DOWN, between])
    run(pool.ask_times(12))
    assert (pool.num_asked, pool.rests) == (12, False)


@pytest.mark.parametrize("failure", [DOWN, InvalidReply("an HTML page")])
def test_only_failures_that_may_be_tried_again_count(failure: Exception) -> None:
    pool = Pool([failure])
    run(pool.ask_times(4))
    assert (pool.num_asked, pool.rests) == (3, True)


def test_many_calls_lost_with_one_replica_are_one_failure_of_the_model() -> None:
    """The other replicas of the model may be well, and only the dead one must be left out."""
    pool = Pool([*[ReplicaDied("gone", None, "a")] * 20, "from another replica"])
    assert run(pool.ask_times(21))[-1] == "from another replica"
    assert not pool.rests


def test_model_whose_replicas_die_one_after_the_other_rests() -> None:
    pool = Pool([ReplicaDied("gone", None, name) for name in "abc"])
    run(pool.ask_times(4))
    assert (pool.num_asked, pool.rests) == (3, True)


def test_rests_double_up_to_the_longest_and_one_answer_ends_them() -> None:
    pool = Pool([*[DOWN] * 7, "yes"])

    async def probe_times() -> list[float]:
        times: list[float] = []
        while len(times) < 3 or pool.rests:
            before = pool.num_asked
            await pool.ask()
            times += [now_s()] if pool.num_asked > before else []
            await asyncio.sleep(1)
        return times

    assert run(probe_times()) == [0, 1, 2, 12, 32, 72, 132, 192], "rests of 10, 20, 40, and then 60 s"
    pool.small._replies = [DOWN]
    run(pool.ask_times(4))
    assert pool.num_asked == 8 + 3, "and it takes three failures again"


def test_one_call_probes_while_the_others_still_use_the_fallback() -> None:
    pool = Pool(lambda *_: DOWN if pool.num_asked <= 3 else "back", delay_s=5)

    async def check() -> None:
        await pool.ask_times(3)
        await asyncio.sleep(10)
        answers = await asyncio.gather(*(pool.ask() for _ in range(20)))
        assert sorted(answers) == ["back"] + ["from large"] * 19
        assert await pool.ask() == "back"

    run(check())


def test_call_after_a_cancelled_probe_probes_again() -> None:
    pool = Pool(lambda *_: DOWN if pool.num_asked <= 3 else "back", delay_s=5)

    async def check() -> None:
        await pool.ask_times(3)
        await asyncio.sleep(10)
        probe = asyncio.ensure_future(pool.ask())
        await asyncio.sleep(1)
        probe.cancel()
        await asyncio.wait([probe])
        assert await pool.ask() == "back"

    run(check())


@pytest.mark.parametrize(("asked_s", "rest_s"), [(30.0, 30.0), (3600.0, 60.0)])
def test_rest_that_the_provider_asks_for_begins_at_once(asked_s: float, rest_s: float) -> None:
    pool = Pool([EngineUnavailable("busy", asked_s), "yes"])

    async def check() -> None:
        assert await pool.ask_times(2) == ["from large"] * 2
        await asyncio.sleep(rest_s - 0.1)
        assert await pool.ask() == "from large"
        await asyncio.sleep(0.1)
        assert await pool.ask() == "yes"

    run(check())
    assert pool.num_asked == 2


def test_call_that_waits_as_the_provider_asked_is_the_probe_and_others_do_not_wait() -> None:
    pool = Pool([EngineUnavailable("busy", 3.0), "yes"])

    async def check() -> None:
        waiting = asyncio.ensure_future(pool.ask(max_attempts=2))
        await asyncio.sleep(1)
        assert (await pool.ask(max_attempts=2), now_s()) == ("from large", 1.0)
        assert (await waiting, now_s()) == ("yes", 3.0)

    run(check())


def test_resting_model_without_a_fallback_is_asked() -> None:
    pool = Pool([*[DOWN] * 3, "late but there"], has_fallback=False)

    async def check() -> None:
        for _ in range(3):
            with pytest.raises(EngineUnavailable):
                await pool.ask()
        assert await pool.ask() == "late but there"

    run(check())
    assert not pool.rests


def test_resting_model_is_asked_last_when_its_fallback_fails() -> None:
    pool = Pool([*[DOWN] * 3, "late but there"])

    async def check() -> None:
        await pool.ask_times(3)
        pool.large._replies = [REFUSED]
        assert await pool.ask() == "late but there"

    run(check())
    assert [(call.model, call.outcome) for call in pool.ledger.calls[-2:]] == [
        ("large", "failed"),
        ("small", "ok"),
    ]


def test_failed_last_resort_does_not_prolong_a_rest() -> None:
    pool = Pool([*[DOWN] * 9, "back"], has_fallback=False)

    async def check() -> None:
        for _ in range(9):
            with pytest.raises(EngineUnavailable):
                await pool.ask()
        await asyncio.sleep(10)
        assert await pool.ask() == "back"

    run(check())


def test_rest_that_begins_between_two_attempts_cancels_the_second() -> None:
    pool = Pool([DOWN])

    async def check() -> None:
        await pool.ask_times(2)
        assert (await pool.ask(max_attempts=5), now_s()) == ("from large", 0.0)

    run(check())
    assert pool.num_asked == 3


def test_attempts_stay_within_the_configured_number_during_rests() -> None:
    pool = Pool([DOWN], has_fallback=False)
    for max_attempts in (1, 2, 7):
        before = pool.num_asked
        with pytest.raises(EngineUnavailable):
            run(pool.ask(max_attempts=max_attempts))
        assert pool.num_asked - before == max_attempts


def test_calls_begun_before_a_rest_neither_end_nor_prolong_it() -> None:
    """Twenty calls in flight when a model goes down are one failure of it, not twenty."""
    outcomes = iter([DOWN] * 18 + ["lucky"] * 2)
    pool = Pool(lambda *_: next(outcomes), delay_s=1)

    async def check() -> None:
        await asyncio.gather(*(pool.ask() for _ in range(20)))
        cooldown = pool.pool["small"].cooldown
        assert (cooldown.num_rests, cooldown.left_s()) == (1, 10.0)

    run(check())


def test_changed_config_applies_from_the_next_failure() -> None:
    pool = Pool([DOWN])

    async def check() -> None:
        await pool.ask_times(1)
        pool.cooldown = CooldownConfig(after_failures=2, first_s=99)
        await pool.ask_times(3)
        assert pool.num_asked == 2
        assert pool.pool["small"].cooldown.left_s() == 99.0

    run(check())


def test_rests_can_be_turned_off() -> None:
    pool = Pool([EngineUnavailable("busy", 30.0)], cooldown=CooldownConfig(first_s=0))
    run(pool.ask_times(10))
    assert (pool.num_asked, pool.rests) == (10, False)


@pytest.mark.parametrize("later", [["back"], [DOWN, "back"]])
def test_model_is_asked_at_once_when_rests_are_turned_off_and_its_failures_do_not_count(
    later: list[Any],
) -> None:
    pool = Pool([*[DOWN] * 3, *later])

    async def check() -> None:
        assert await pool.ask_times(4) == ["from large"] * 4
        pool.cooldown = CooldownConfig(first_s=0)
        assert (await pool.ask_times(len(later)))[-1] == "back"

    run(check())
    assert (pool.num_asked, pool.rests) == (3 + len(later), False)


def test_failed_probe_ends_the_rests_when_they_were_turned_off_meanwhile() -> None:
    """The call waits as its provider asked, and others put the model to rest meanwhile, by the old limits."""
    pool = Pool([EngineUnavailable("busy", 3.0), *[DOWN] * 4, "back"])

    async def check() -> None:
        before, pool.cooldown = CooldownConfig(after_failures=3, first_s=1), CooldownConfig(first_s=0)
        waiting = asyncio.ensure_future(pool.ask(max_attempts=2))
        await asyncio.sleep(1)
        pool.cooldown = before
        await pool.ask_times(3)
        assert pool.rests
        assert await waiting == "from large"
        assert not pool.rests
        assert await pool.ask() == "back"

    run(check())


def test_metrics_show_which_models_rest() -> None:
    pool = Pool([DOWN])
    metrics = Metrics()
    metrics.watch_models(pool.pool)
    assert 'r2_model_resting{model="small"} 0.0' in metrics.render().decode()

    async def rested() -> str:
        await pool.ask_times(4)
        return metrics.render().decode()

    text = run(rested())
    assert 'r2_model_resting{model="small"} 1.0' in text
    assert 'r2_model_resting{model="large"} 0.0' in text
    assert 'r2_model_rests_total{model="small"} 1.0' in text


async def test_provider_that_is_down_gets_no_calls_until_it_answers_a_probe() -> None:
    """The whole endpoint, on real sockets: the rest of 0.2 s is short, and no upper bound is asserted."""
    async with standing(json_reply({}, 500), max_attempts=1, cooldown={"first_s": 0.2}) as stand:
        assert [(await stand.ask(stream=i % 2 == 0)).text for i in range(8)] == [RIGHT] * 8
        assert len(stand.upstream.requests) < 8
        stand.upstream.script = json_reply(completion())
        async with asyncio.timeout(20):
            while (await stand.ask(stream=False, text="again")).text != "four":  # noqa: ASYNC110  polls
                await asyncio.sleep(0.05)
        assert asked(stand.upstream, "again") == 1
        assert (await stand.ask(stream=False)).text == "four"
