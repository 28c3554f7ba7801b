"""Rewards of replies that are right, wrong, dear, malformed, or run on a pool that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.types import Plan
from r2_train.config import Module, RewardConfig
from r2_train.stages.rewards import Judge, Judged, PlanReward, Reference, TokenCounts, batch_metrics, reward
from tests.support.in_process import allocation_json, plan_json, plan_of
from tests.support.scripted_evaluation import sums
from tests.support.scripted_training import cache_in, engines, pool_over, worker

REFERENCE = Reference(cost_usd=0.01, critical_path_tokens=20)
PLAN = plan_of("recall 60", "recall 120", "add #1 and #2")
CHEAP, DEAR, WRONG = ("tiny", "tiny", "large"), ("large",) * 3, ("tiny", "tiny", "small")


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ({"is_well_formed": False}, 0.0),
        ({"is_well_formed": True, "is_correct": None}, None),
        ({"is_well_formed": True, "is_correct": False, "cost_usd": 0.001}, 0.2),
        ({"is_well_formed": True, "is_correct": True, "cost_usd": 0.0}, 1.2),
        ({"is_well_formed": True, "is_correct": True, "cost_usd": 0.01}, 0.9),
        ({"is_well_formed": True, "is_correct": True, "cost_usd": 0.005, "critical_path_tokens": 10}, 0.95),
        ({"is_well_formed": True, "is_correct": False, "review": 0.5, "swap": 1.0}, 0.2 + 0.05 + 0.2),
    ],
)
def test_reward_is_success_gated_cost_and_path(judged: dict[str, Any], expected: float | None) -> None:
    config = RewardConfig(
        cost=0.3, critical_path=0.2, well_formed=0.2, review=0.1, reviewer="large", swap=0.2
    )
    value = reward(Judged(**judged), config, REFERENCE)
    assert value == (None if expected is None else pytest.approx(expected))


def test_a_wrong_answer_never_earns_more_than_a_right_one_at_the_reference_cost() -> None:
    config = RewardConfig()
    free_but_wrong = reward(Judged(is_well_formed=True, is_correct=False), config, REFERENCE)
    right_and_dear = reward(
        Judged(is_well_formed=True, is_correct=True, cost_usd=REFERENCE.cost_usd), config, REFERENCE
    )
    assert free_but_wrong is not None and right_and_dear is not None and free_but_wrong < right_and_dear


async def rewards(
    tmp_path: Path, module: Module, replies: list[str], config: RewardConfig | None = None, **changed: Any
) -> list[float | None]:
    """The rewards of replies to the sum 60 + 120, which needs `large`."""
    config = config or RewardConfig()
    with cache_in(tmp_path) as cache:
        judge = judge_of(module, cache, config, **changed)
        plan = PLAN.model_dump_json() if module == "allocator" else None
        return await PlanReward(judge, config, REFERENCE)(
            replies, ["sum-60"] * len(replies), [plan] * len(replies)
        )


def judge_of(module: Module, cache: Any, config: RewardConfig, **changed: Any) -> Judge:
    tasks = {task.id: task for task in sums(60)}
    counts = TokenCounts(lambda messages: 10, lambda text: len(text.split()))
    return Judge(module, pool_over(cache, engines(**changed)), Grader(), config, tasks, counts)


async def test_among_right_allocations_the_cheaper_earns_more_and_wrong_ones_only_their_form(
    tmp_path: Path,
) -> None:
    cheap, dear, wrong, unknown, short = await rewards(
        tmp_path,
        "allocator",
        [allocation_json(*models) for models in (CHEAP, DEAR, WRONG, ("huge",) * 3, ("tiny",))],
    )
    assert cheap is not None and dear is not None
    assert cheap > dear > 0.2
    assert (wrong, unknown, short) == (0.2, 0.0, 0.0)


async def test_the_served_allocator_allocates_the_decomposers_plans(tmp_path: Path) -> None:
    right = plan_json("recall 60", "recall 120", "add #1 and #2")
    wrong = plan_json("recall 60", "recall 60", "add #1 and #2")
    got = await rewards(
        tmp_path, "decomposer", [right, wrong, "nonsense", "{}"], allocator=[allocation_json(*CHEAP)]
    )
    assert got[0] is not None and got[0] > 1.0
    assert got[1:] == [0.2, 0.0, 0.0]


async def test_a_shorter_reply_with_the_same_result_earns_more(tmp_path: Path) -> None:
    terse, wordy = (
        plan_json("recall 60", "recall 120", "add #1 and #2"),
        plan_json("recall  60 please now", "recall 120", "add #1 and #2"),
    )
    got = await rewards(tmp_path, "decomposer", [terse, wordy], allocator=[allocation_json(*CHEAP)])
    assert got[0] is not None and got[1] is not None and got[0] > got[1]


async def test_failed_calls_give_no_reward(tmp_path: Path) -> None:
    allocations = [
        allocation_json(*models)
        for models in (CHEAP, ("tiny", "tiny", "small"), ("small",) * 3, ("tiny", "small", "small"))
    ]
    config = RewardConfig(max_failed_share=0.5)
    got = await rewards(tmp_path, "allocator", allocations, config, large=[EngineUnavailable("down")])
    assert got == [None, 0.2, 0.2, 0.2]


async def test_an_outage_stops_training_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="2 of 2 rollouts failed"):
        await rewards(tmp_path, "allocator", [allocation_json(*DEAR)] * 2, large=[EngineUnavailable("down")])


async def test_the_same_reply_is_run_once_and_a_failed_one_again(tmp_path: Path) -> None:
    outage = [EngineUnavailable("down")]

    def large(messages: Any, sampling: Any) -> Any:
        return outage[0] if outage else worker(10**9)(messages, sampling)

    reply = allocation_json(*DEAR)
    with cache_in(tmp_path) as cache:
        judge = judge_of("allocator", cache, RewardConfig(), large=large)
        first = await judge.judge("sum-60", PLAN, reply)
        outage.clear()
        second = await judge.judge("sum-60", PLAN, reply)
        num_calls = cache.num_calls
        third = await judge.judge("sum-60", PLAN, reply)
    assert (first.is_correct, second.is_correct, third.is_correct) == (None, True, True)
    assert cache.num_calls == num_calls == 3


async def test_swap_credit_rewards_only_models_that_are_needed(tmp_path: Path) -> None:
    config = RewardConfig(swap=1.0, cost=0.0)
    needed, wasted = await rewards(
        tmp_path, "allocator", [allocation_json(*CHEAP), allocation_json(*DEAR)], config
    )
    assert needed is not None and wasted is not None
    assert needed == pytest.approx(2.2), "the one step at `large` fails with `small`"
    assert wasted == pytest.approx(1.2 + 1 / 3), "of three steps at `large` one needs it"


async def test_the_reviewers_share_of_approved_steps_counts(tmp_path: Path) -> None:
    config = RewardConfig(review=1.0, reviewer="decomposer", cost=0.0)
    (got,) = await rewards(
        tmp_path, "allocator", [allocation_json(*CHEAP)], config, decomposer=["10", "10", "5"]
    )
    assert got == pytest.approx(1.2 + 2.5 / 3)


def test_metrics_leave_failed_rollouts_out_of_accuracy() -> None:
    judged = [
        Judged(is_well_formed=True, is_correct=True, cost_usd=0.01, models=("tiny", "large"), num_subtasks=2),
        Judged(is_well_formed=True, is_correct=None),
        Judged(is_well_formed=False),
    ]
    metrics = batch_metrics(judged, REFERENCE, ("tiny", "small", "large"))
    assert metrics["accuracy"] == 0.5 and metrics["failed"] == pytest.approx(1 / 3)
    assert metrics["share/large"] == 0.5 and metrics["cost_ratio"] == 1.0


def test_a_plan_is_unchanged_after_json() -> None:
    assert Plan.model_validate_json(PLAN.model_dump_json(exclude_none=True)) == PLAN
