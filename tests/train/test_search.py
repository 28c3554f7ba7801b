"""Grouped search finds the cheapest correct scheme without trying all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.types import Plan
from r2_train.config import SearchConfig
from r2_train.stages.search import PlannedTask, SearchedPlan, Searcher, SearchSummary
from tests.support.in_process import plan_of
from tests.support.scripted_evaluation import sums
from tests.support.scripted_training import cache_in, engines, pool_over

QUIET = Console(quiet=True)


def planned(num_tasks: int) -> list[PlannedTask]:
    """Tasks `Add i and 2i.`, whose sum needs `small` if both numbers are below 100, or else `large`."""
    return [
        PlannedTask(task, plan_of(f"recall {i}", f"recall {2 * i}", "add #1 and #2"))
        for i, task in enumerate(sums(num_tasks), 1)
    ]


async def searched(
    tmp_path: Path, item: PlannedTask, thresholds: tuple[float, float], **config: Any
) -> SearchedPlan:
    with cache_in(tmp_path) as cache:
        searcher = Searcher(
            pool_over(cache, engines()), SearchConfig(probe="small", **config), Grader(), tmp_path
        )
        searcher.thresholds = thresholds
        return await searcher.search(item)


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (1.1, 1.1), (1.1, 0.0), (0.9, 0.2)])
@pytest.mark.parametrize(("i", "model"), [(10, "small"), (60, "large")])
async def test_the_cheapest_correct_scheme_is_found_from_any_start(
    tmp_path: Path, i: int, model: str, thresholds: tuple[float, float]
) -> None:
    row = await searched(tmp_path, planned(i)[-1], thresholds)
    assert row.models == ("tiny", "tiny", model)


async def test_few_schemes_are_tried_and_all_are_logged(tmp_path: Path) -> None:
    row = await searched(tmp_path, planned(10)[-1], (1.1, 1.1))
    moves = [scheme.move for scheme in row.schemes]
    assert moves[0] == "initial" and all(move.startswith("down") for move in moves[1:])
    assert len(row.schemes) < 3**3 / 2
    assert len({scheme.models for scheme in row.schemes}) == len(row.schemes), "none is run twice"


async def test_upward_the_least_sure_step_goes_up_one_group_at_a_time(tmp_path: Path) -> None:
    row = await searched(tmp_path, planned(10)[-1], (0.0, 0.0))
    assert [scheme.models for scheme in row.schemes[:2]] == [("tiny",) * 3, ("tiny", "tiny", "small")]
    assert not any("large" in scheme.models for scheme in row.schemes)


async def test_a_plan_that_no_model_can_carry_out_has_no_scheme(tmp_path: Path) -> None:
    task = planned(10)[-1]
    broken = PlannedTask(task.task, plan_of("recall 1", "recall 2", "add #1 and #2"))
    row = await searched(tmp_path, broken, (0.0, 0.0))
    assert row.best is None and not any(scheme.is_correct for scheme in row.schemes)


async def test_the_number_of_schemes_is_bounded(tmp_path: Path) -> None:
    row = await searched(tmp_path, planned(60)[-1], (0.0, 0.0), max_schemes=2)
    assert len(row.schemes) <= 2


async def run(tmp_path: Path, num_tasks: int = 60) -> tuple[SearchSummary, Searcher]:
    with cache_in(tmp_path) as cache:
        searcher = Searcher(
            pool_over(cache, engines()), SearchConfig(probe="small"), Grader(), tmp_path / "search"
        )
        items = planned(num_tasks)
        return await searcher.run(items[::2], items[1::2], QUIET), searcher


async def test_thresholds_are_fitted_so_that_the_start_is_accurate_and_not_dear(tmp_path: Path) -> None:
    summary, searcher = await run(tmp_path)
    assert summary.num_solved == summary.num_plans == 30
    assert summary.initial_accuracy == 1.0, "what small is unsure of starts at large"
    assert searcher.thresholds[-1] > 0.4965, (
        "exp(-0.7): the sureness of a wrong sum does not reach the middle group"
    )
    assert summary.best_cost_usd < summary.initial_cost_usd
    assert summary.shares["tiny"] == pytest.approx(2 / 3)


async def test_a_second_run_gives_the_same_summary(tmp_path: Path) -> None:
    assert (await run(tmp_path))[0] == (await run(tmp_path))[0]


async def test_a_probe_without_log_probabilities_is_named(tmp_path: Path) -> None:
    with cache_in(tmp_path) as cache:
        searcher = Searcher(
            pool_over(cache, engines(small=["7"])), SearchConfig(probe="small"), Grader(), tmp_path
        )
        with pytest.raises(ConfigError, match="'small' returns no log-probabilities"):
            await searcher.confidences(planned(1)[0])


async def test_sampled_executions_refuse_a_scheme_that_was_right_by_luck(tmp_path: Path) -> None:
    def lucky(messages: Any, sampling: Any) -> Any:
        from tests.support.scripted_training import worker

        return worker(10**9 if not sampling.temperature else 0)(messages, sampling)

    item = planned(10)[-1]
    with cache_in(tmp_path) as cache:
        pool = pool_over(cache, engines(tiny=lucky))
        once = Searcher(pool, SearchConfig(probe="small"), Grader(), tmp_path)
        twice = Searcher(pool, SearchConfig(probe="small", num_executions=2), Grader(), tmp_path)
        models = ("tiny", "tiny", "tiny")
        assert (await once.execute(item, models))[1] is True
        assert (await twice.execute(item, models))[1] is False


def test_two_plans_of_one_task_are_searched_separately() -> None:
    task = sums(1)[0]
    assert PlannedTask(task, Plan.single("a")).key != PlannedTask(task, Plan.single("b")).key
