"""The embedded models answer held-out tasks, routed by the embedded decomposers and allocators."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest

from r2_serve import EMBEDDED_CONFIG
from r2_serve.calls.pool import in_process_engines
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab import demo
from r2_serve.router import router
from r2_serve.serve_config import load
from r2_serve.types import Answer, Message, Plan, Query

pytestmark = [pytest.mark.engine, pytest.mark.smoke]

NUM_TASKS = 100


@pytest.fixture(scope="module")
def embedded() -> router.Router:
    config = load(EMBEDDED_CONFIG)
    return router.in_process(config.router, config.routing, in_process_engines(config.model_apps))


async def test_scan_commands_longer_than_any_in_training_are_routed_at_a_twentieth_of_the_largest_models_cost(
    embedded: router.Router,
) -> None:
    tasks = demo.DOMAINS["scan"].tasks(NUM_TASKS)
    routed = await _answers(embedded, [_query("r2-scan", task.query) for task in tasks])
    alone = await _answers(embedded, [_query("scan-168k", task.query) for task in tasks])
    assert await _accuracy(routed, tasks) >= 0.90
    assert await _accuracy(alone, tasks) <= 0.20
    assert _worker_cost(routed) <= Decimal("0.05") * _worker_cost(alone)
    assert _router_cost(routed) <= Decimal("0.10") * _worker_cost(alone)


async def test_word_problems_are_routed_at_a_third_of_the_cost_of_the_largest_model_on_the_same_plans(
    embedded: router.Router,
) -> None:
    tasks = demo.DOMAINS["words"].tasks(NUM_TASKS)
    routed = await _answers(embedded, [_query("r2", task.query) for task in tasks])
    plans = [answer.trace.plan for answer in routed]
    largest = await _answers(
        embedded,
        [
            _query("r2", task.query, plan, "all:words-280k")
            for task, plan in zip(tasks, plans, strict=True)
            if plan is not None
        ],
    )
    assert len(largest) == NUM_TASKS
    assert await _accuracy(routed, tasks) >= 0.75
    assert _worker_cost(routed) <= Decimal("0.35") * _worker_cost(largest)
    assert _router_cost(routed) <= Decimal("0.10") * _worker_cost(largest)


async def test_a_query_outside_the_models_vocabulary_is_refused_by_name(embedded: router.Router) -> None:
    with pytest.raises(Exception, match="capital"):
        await embedded.answer(_query("scan-168k", "what is the capital of France"))


def _query(model: str, text: str, plan: Plan | None = None, policy: str | None = None) -> Query:
    return Query(
        request_id="test",
        model=model,
        messages=(Message(role="user", content=text),),
        plan=plan,
        policy=policy,
    )


async def _answers(embedded: router.Router, queries: list[Query]) -> list[Answer]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(embedded.answer(query)) for query in queries]
    return [task.result() for task in tasks]


async def _accuracy(answers: list[Answer], tasks: Sequence[Task]) -> float:
    async with Grader() as grader:
        verdicts = [
            await grader.grade(task.benchmark, task.row, answer.text)
            for answer, task in zip(answers, tasks, strict=True)
        ]
    return sum(verdict.correct is True for verdict in verdicts) / len(verdicts)


def _worker_cost(answers: list[Answer]) -> Decimal:
    return sum((answer.trace.worker_cost_usd for answer in answers), Decimal(0))


def _router_cost(answers: list[Answer]) -> Decimal:
    return sum((answer.cost_usd for answer in answers), Decimal(0)) - _worker_cost(answers)
