"""A valid plan, always: the best of the samples, or the one-step plan with the reason why."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2_serve.calls.budget import Budget
from r2_serve.calls.ledger import Ledger
from r2_serve.config import DecomposerConfig, LimitsConfig, ScoreWeights
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import BudgetExceeded, CodecError, EngineRefused, EngineUnavailable
from r2_serve.prompts.conversation import asked
from r2_serve.router.decomposer import Decomposer, Decomposition, best_plan, check_plan, score_plans
from r2_serve.types import EngineCall, Plan
from tests.support.cpu import loops
from tests.support.in_process import model, plan_json, plan_of, pool_of
from tests.support.virtual_time import now_s, run

EQUAL = ScoreWeights()
NO_LIMIT = Budget()


async def decompose(engine: ScriptedEngine, *, ledger: Ledger | None = None, **fields: Any) -> Decomposition:
    config = DecomposerConfig(**{"model": "m", "num_samples": 1, "good_enough": None, **fields})
    return await Decomposer(pool_of((model("m"), engine))).decompose(
        asked("the query"), config, LimitsConfig(), ledger or Ledger(NO_LIMIT)
    )


def test_best_sample_is_kept_and_the_others_are_counted() -> None:
    engine = ScriptedEngine(
        [plan_json("a", "b", "c", "d", "#1 #2 #3 #4"), "no plan", plan_json("look up", "use #1")]
    )
    ledger = Ledger(NO_LIMIT)
    made = run(decompose(engine, num_samples=3, ledger=ledger))
    assert made.plan == plan_of("look up", "use #1")
    assert (made.num_samples, made.num_rejected, made.fallback) == (3, 1, None)
    assert [call.stage for call in ledger.calls] == ["decompose"] * 3


def test_samples_are_drawn_concurrently_and_a_single_one_is_greedy() -> None:
    async def check(num_samples: int) -> tuple[float, set[float | None]]:
        engine = ScriptedEngine([plan_json("a")], delay_s=2)
        await decompose(engine, num_samples=num_samples, temperature=0.7)
        return now_s(), {call.sampling.temperature for call in engine.calls}

    assert run(check(5)) == (2.0, {0.7})
    assert run(check(1)) == (2.0, {0.0})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I would rather not.", "not_json"),
        ("", "not_json"),
        (plan_json("a #1"), "cycle"),
        (plan_json("a #2", "b #1"), "cycle"),
        (plan_json("a #9"), "unknown_id"),
        ('{"subtasks": [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]}', "duplicate_id"),
        (plan_json(*["step"] * 10_000).replace(" ", ""), "too_long"),
        (
            '{"subtasks": [' + ",".join(f'{{"id":{i},"text":"a"}}' for i in range(1, 8_001)) + "]}",
            "too_many_subtasks",
        ),
        (plan_json(*["x", *[f"#{i}" for i in range(1, 16)]]), "too_deep"),
        (plan_json("x" * 4_001), "subtask_too_long"),
        (plan_json("x" * 1_000_000), "too_long"),
        (plan_json("#" + "1" * 5_000), "subtask_too_long"),
        (EngineUnavailable("down"), "decomposer_failed (EngineUnavailable: m: down)"),
        (EngineRefused("prompt too long"), "decomposer_failed (EngineRefused: prompt too long)"),
    ],
)
def test_hostile_decomposer_loses_the_plan_but_not_the_answer(reply: str | Exception, reason: str) -> None:
    done = list[Decomposition]()
    assert loops(lambda: done.append(run(decompose(ScriptedEngine([reply]), num_samples=3)))) < 100
    made = done[0]
    assert made.plan == Plan.single("the query")
    assert made.fallback == f"no valid plan: {reason} x3"
    assert (made.num_samples, made.num_rejected) == (3, 3)


LOOSE = plan_json("find the tower", "say how high", "name the city")
"""Two of its three answers are used by nothing."""
GOOD = plan_json("find the tower", "how high is #1")


@pytest.mark.parametrize(
    ("replies", "kept", "temperatures", "num_rejected"),
    [
        ([GOOD], plan_of("find the tower", "how high is #1"), [0.0], 0),
        (["no plan", GOOD], plan_of("find the tower", "how high is #1"), [0.0, 0.7], 1),
        ([LOOSE, "no plan", GOOD], plan_of("find the tower", "how high is #1"), [0.0, 0.7, 0.7], 1),
        ([LOOSE], plan_of("find the tower", "say how high", "name the city"), [0.0, 0.7, 0.7], 0),
    ],
    ids=["good", "invalid, then good", "loose, invalid, then good", "never good"],
)
def test_first_plan_that_is_good_enough_ends_the_sampling(
    replies: list[str], kept: Plan, temperatures: list[float], num_rejected: int
) -> None:
    """The first sample is greedy; the best of all is kept where none is good enough."""
    engine, ledger = ScriptedEngine(replies), Ledger(NO_LIMIT)
    made = run(decompose(engine, num_samples=3, good_enough=0.25, ledger=ledger))
    assert made.plan == kept
    assert [call.sampling.temperature for call in engine.calls] == temperatures
    assert (made.num_samples, made.num_rejected) == (len(temperatures), num_rejected)
    assert len(ledger.calls) == len(temperatures)


@pytest.mark.parametrize("failure", [EngineUnavailable("down"), EngineRefused("prompt too long")])
def test_decomposer_that_fails_is_not_asked_for_further_samples(failure: Exception) -> None:
    made = run(decompose(ScriptedEngine([failure]), num_samples=3, good_enough=0.25))
    assert (made.plan, made.num_samples) == (Plan.single("the query"), 1)
    assert made.fallback is not None and "decomposer_failed" in made.fallback


def test_samples_in_turn_share_one_time_limit() -> None:
    async def check() -> tuple[float, Decomposition]:
        engine = ScriptedEngine([LOOSE], delay_s=4)
        made = await decompose(engine, num_samples=3, good_enough=0.0, timeout_s=10)
        return now_s(), made

    took_s, made = run(check())
    assert (took_s, made.num_samples, made.num_rejected) == (10.0, 3, 1)
    assert made.plan == plan_of("find the tower", "say how high", "name the city")


def test_budget_that_ends_while_samples_come_in_turn_keeps_the_plan_that_is_there() -> None:
    ledger = Ledger(Budget(max_calls=1))
    made = run(decompose(ScriptedEngine([LOOSE]), num_samples=3, good_enough=0.25, ledger=ledger))
    assert (len(made.plan.subtasks), made.num_samples, made.num_rejected) == (3, 2, 1)
    with pytest.raises(BudgetExceeded):
        run(
            decompose(
                ScriptedEngine([GOOD]), num_samples=3, good_enough=0.25, ledger=Ledger(Budget(max_tokens=10))
            )
        )


def test_late_samples_are_rejected_and_still_paid() -> None:
    class Slow(ScriptedEngine):
        async def generate(self, call: EngineCall) -> Any:
            if self.calls:
                await asyncio.sleep(1_000)
            return await super().generate(call)

    ledger = Ledger(NO_LIMIT)

    async def check() -> Decomposition:
        made = await decompose(Slow([plan_json("a", "b #1")]), num_samples=3, timeout_s=7, ledger=ledger)
        assert now_s() == 7.0
        return made

    made = run(check())
    assert made.plan == plan_of("a", "b #1")
    assert (made.num_rejected, made.fallback) == (2, None)
    assert sorted(call.outcome for call in ledger.calls) == ["cancelled", "cancelled", "ok"]
    assert all(call.usage.prompt_tokens > 0 for call in ledger.calls)


def test_samples_beyond_the_budget_are_left_out() -> None:
    ledger = Ledger(Budget(max_calls=2))
    made = run(decompose(ScriptedEngine([plan_json("a")]), num_samples=3, ledger=ledger))
    assert (made.plan, made.num_rejected, len(ledger.calls)) == (plan_of("a"), 1, 2)


def test_budget_too_small_for_any_sample_is_an_error() -> None:
    with pytest.raises(BudgetExceeded):
        run(decompose(ScriptedEngine([plan_json("a")]), num_samples=3, ledger=Ledger(Budget(max_tokens=10))))


def test_cancelling_stops_every_sample() -> None:
    async def check() -> None:
        task = asyncio.ensure_future(decompose(ScriptedEngine([plan_json("a")], delay_s=50), num_samples=3))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert len(asyncio.all_tasks()) == 1

    run(check())


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_subtasks": 2}, "too_many_subtasks"),
        ({"max_depth": 2}, "too_deep"),
        ({"max_subtask_chars": 5}, "subtask_too_long"),
    ],
)
def test_plan_at_the_limit_is_accepted_and_one_above_it_is_refused(
    limits: dict[str, int], reason: str
) -> None:
    plan = plan_of("abcdef", "#1", "#2")
    with pytest.raises(CodecError) as caught:
        check_plan(plan, LimitsConfig(**limits))
    assert caught.value.reason == reason
    (name, limit) = next(iter(limits.items()))
    check_plan(plan, LimitsConfig(**{name: limit + 1}))


# -- the score ----

texts = st.lists(
    st.text("abc #1", min_size=1, max_size=12).filter(lambda t: "#" not in t), min_size=1, max_size=6
)
some_plans = st.lists(texts.map(lambda ts: plan_of(*ts)), min_size=1, max_size=5)
weights = st.builds(
    ScoreWeights, conciseness=st.floats(0, 10), practicality=st.floats(0, 10), coherence=st.floats(0, 10)
)


@given(some_plans, weights)
def test_score_is_between_zero_and_one_for_any_weights(plans: list[Plan], weights: ScoreWeights) -> None:
    """Each term is divided by its mean over the candidates."""
    mean = sum(score_plans(plans, weights)) / len(plans)
    total = weights.conciseness + weights.practicality + weights.coherence
    assert mean == pytest.approx(total) or mean == pytest.approx(total - weights.coherence)


@given(some_plans, weights, st.randoms())
def test_kept_plan_does_not_depend_on_the_order_of_worse_ones(
    plans: list[Plan], weights: ScoreWeights, rng: Any
) -> None:
    shuffled = list(plans)
    rng.shuffle(shuffled)
    scores = dict(zip(map(id, plans), score_plans(plans, weights)))
    assert scores[id(best_plan(shuffled, weights))] == pytest.approx(min(scores.values()))


def test_first_of_equal_plans_is_kept() -> None:
    first, second = plan_of("abc", "use #1"), plan_of("abd", "use #1")
    assert best_plan([first, second], EQUAL) is first
    assert best_plan([second, first], EQUAL) is second


@pytest.mark.parametrize(
    ("weight", "better", "worse"),
    [
        ("conciseness", plan_of("find the height"), plan_of("find", "the height #1")),
        ("practicality", plan_of("find it", "use #1"), plan_of("find it with a great many words", "use #1")),
        ("coherence", plan_of("find it", "use #1"), plan_of("find it", "use it")),
    ],
)
def test_each_term_of_the_score_prefers_what_its_name_says(weight: str, better: Plan, worse: Plan) -> None:
    only = ScoreWeights(**{"conciseness": 0, "practicality": 0, "coherence": 0, weight: 1})
    assert best_plan([worse, better], only) is better
