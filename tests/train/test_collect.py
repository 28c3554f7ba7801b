"""`collect` runs, grades and scores candidate plans, counts dropped tasks, and goes on after a stop."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.prompts.conversation import asked
from r2_serve.types import Engine, EngineCall, Sampling
from r2_train.config import CollectConfig
from r2_train.rollouts.call_cache import CallCache, SpendLimitReached
from r2_train.stages.collect import WHOLE, Collector, CollectSummary
from tests.support.scripted_evaluation import numbers, question, sums
from tests.support.scripted_training import ADD, cache_in, engines, num_calls, plans, pool_over

QUIET = Console(quiet=True)
LONG = ("recall {0}", "recall {1}", "recall {1}", "add #1 and #2")
WRONG = ("recall {0}", "recall {0}", "add #1 and #2")


async def collected(
    tmp_path: Path,
    of: dict[str, Engine],
    num_tasks: int = 6,
    max_cost_usd: Decimal | None = None,
    **config: Any,
) -> CollectSummary:
    with cache_in(tmp_path, max_cost_usd=max_cost_usd) as cache:
        given = CollectConfig(**{"num_candidates": 3, **config})
        collector = Collector(pool_over(cache, of), given, Grader(), tmp_path / "collect")
        return await collector.run(sums(6), QUIET)


async def test_the_best_correct_plan_is_kept_and_the_others_are_logged(tmp_path: Path) -> None:
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(decomposer=plans(LONG, WRONG, ADD)))
        row = await Collector(pool, CollectConfig(num_candidates=4), Grader(), tmp_path).collect(sums(1)[0])
    assert [candidate.is_correct for candidate in row.candidates] == [True, False, True]
    assert [candidate.num_drawn for candidate in row.candidates] == [2, 1, 1]
    assert row.plan is not None and len(row.plan.subtasks) == 3, (
        "three steps score better than four, one of which nothing uses"
    )


async def test_dropped_tasks_are_counted_by_reason(tmp_path: Path) -> None:
    nonsense = await collected(tmp_path / "a", engines(decomposer=plans("nonsense")))
    wrong = await collected(tmp_path / "b", engines(decomposer=plans(WRONG)))
    assert (nonsense.num_kept, nonsense.num_dropped_no_valid_plan, nonsense.num_invalid_samples) == (0, 6, 18)
    assert (wrong.num_kept, wrong.num_dropped_none_correct) == (0, 6)


async def test_outage_is_no_verdict_and_the_next_run_asks_again(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"calls failed in 6 of 6 tasks.*down.*same command"):
        await collected(tmp_path, engines(decomposer=[EngineUnavailable("down")]))
    assert (await collected(tmp_path, engines())).num_kept == 6


async def test_plan_whose_steps_failed_is_run_again(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="6 of 6 tasks"):
        await collected(tmp_path, engines(small=[EngineUnavailable("down")]))
    assert (await collected(tmp_path, engines())).num_kept == 6


async def test_few_failed_tasks_leave_the_stage_and_are_asked_next_time(tmp_path: Path) -> None:
    def reply(messages: Any, sampling: Any) -> Any:
        if question(messages) == "Add 1 and 2.":
            return EngineUnavailable("down")
        return plans(ADD)(messages, sampling)

    summary = await collected(tmp_path, engines(decomposer=reply))
    assert (summary.num_kept, summary.num_dropped_not_known, summary.num_dropped_no_valid_plan) == (5, 1, 0)
    assert (await collected(tmp_path, engines())).num_kept == 6


async def test_reasons_of_invalid_samples_are_kept(tmp_path: Path) -> None:
    empty = '{"subtasks": [{"id": 1, "text": "..."}]}'
    summary = await collected(tmp_path, engines(decomposer=plans("nonsense", empty)))
    assert summary.invalid_samples == {"not_json": 12, "empty_step": 6}


async def test_steps_of_collected_plans_read_what_they_ask_for_alone(tmp_path: Path) -> None:
    """So a plan whose steps say nothing is wrong, even if its executor could solve the question."""
    step = {"text": "proceed", "depends_on": [], "needs_query": False}
    idle = json.dumps({"subtasks": [{**step, "id": 1}, {**step, "id": 2}]})

    def solver(messages: Any, sampling: Any) -> str:
        found = numbers(messages[0].text)
        return str(sum(found)) if found else "none"

    small = ScriptedEngine(solver)
    summary = await collected(tmp_path, engines(decomposer=plans(idle), small=small))
    assert summary.num_dropped_none_correct == 6
    assert not any("Add" in message.text for call in small.calls for message in call.messages)


async def test_plans_of_one_step_are_one_plan_whatever_they_say(tmp_path: Path) -> None:
    texts = ["Solve it.", "Answer the question.", "zzz"]
    options = [json.dumps({"subtasks": [{"id": 1, "text": text}]}) for text in texts]
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(decomposer=plans(*options), small=ScriptedEngine("3")))
        row = await Collector(pool, CollectConfig(num_candidates=3), Grader(), tmp_path).collect(sums(1)[0])
    assert [(c.plan, c.num_drawn, c.is_correct) for c in row.candidates] == [(WHOLE, 3, True)]


async def test_a_second_run_makes_no_calls(tmp_path: Path) -> None:
    first, second = engines(), engines()
    summary = await collected(tmp_path, first)
    assert num_calls(first) > 0 and summary.num_kept == 6
    assert await collected(tmp_path, second) == summary
    assert num_calls(second) == 0


async def test_lost_rows_are_made_again_from_cached_calls(tmp_path: Path) -> None:
    await collected(tmp_path, engines())
    (tmp_path / "collect" / "plans.jsonl").unlink()
    again = engines()
    assert (await collected(tmp_path, again)).num_kept == 6
    assert num_calls(again) == 0


async def test_the_spend_limit_stops_the_run_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(SpendLimitReached, match="raise the limit"):
        await collected(tmp_path, engines(), max_cost_usd=Decimal("0.0005"))
    summary = await collected(tmp_path, engines(), max_cost_usd=Decimal(1))
    assert summary.num_kept == 6


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with cache_in(tmp_path), pytest.raises(ConfigError, match="another process uses"), cache_in(tmp_path):
        pass


async def test_spend_of_every_cache_of_the_directory_counts_against_the_limit(tmp_path: Path) -> None:
    """Each rank of a GRPO stage has a cache of its own."""
    call = EngineCall(messages=asked("Add 1 and 2."), sampling=Sampling())
    with CallCache(tmp_path / "calls-1.sqlite") as other:
        await pool_over(other, engines(large=["3"])).ask("large", call.messages, call.sampling)
        spent_usd = other.spent_usd
        assert spent_usd > 0
    with CallCache(tmp_path / "calls-0.sqlite", max_cost_usd=spent_usd) as cache:
        assert cache.spent_usd == spent_usd
        with pytest.raises(SpendLimitReached, match="raise the limit"):
            await pool_over(cache, engines(large=["3"])).ask("large", call.messages, call.sampling)
    with CallCache(tmp_path / "calls-1.sqlite") as again:
        assert again.spent_usd == spent_usd, "its own calls count once"
