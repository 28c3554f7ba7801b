"""Runs many tasks through tiny models at once: decompose, allocate, execute, each stage in batches.

The serving path does this one request at a time with deadlines and retries; here are none of those, and nothing
is sampled. Cost is in parameter-tokens: (prompt + completion tokens) * parameters of the model called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r2_serve.errors import CodecError
from r2_serve.types import Message, ModelCard, Plan, substitute
from r2_train.tiny.tiny_data import CODEC, MAX_SUBTASKS, ask
from r2_train.tiny.tiny_models import TinyModel

MAX_PLAN_TOKENS = 128
MAX_ALLOCATION_TOKENS = MAX_SUBTASKS + 1

Models = tuple[str, ...]
"""Name of one model per subtask."""


@dataclass(frozen=True)
class Outcome:
    """Answers in task order, and what all of the calls cost together."""

    answers: list[str]
    cost: int

    def accuracy(self, golds: Sequence[str]) -> float:
        return sum(answer == gold for answer, gold in zip(self.answers, golds, strict=True)) / len(golds)


def decompose(decomposer: TinyModel, queries: Sequence[str]) -> tuple[list[Plan | None], int]:
    """A plan per query, None where the reply is not one; and the cost."""
    replies = decomposer.chat(
        [CODEC.render_decompose(query, MAX_SUBTASKS) for query in queries], max_tokens=MAX_PLAN_TOKENS
    )
    plans: list[Plan | None] = []
    for query, reply in zip(queries, replies, strict=True):
        try:
            plans.append(CODEC.parse_plan(reply.text, query))
        except CodecError:
            plans.append(None)
    return plans, sum(decomposer.cost(reply.usage) for reply in replies)


def allocate(
    allocator: TinyModel, queries: Sequence[str], plans: Sequence[Plan], pool: Sequence[ModelCard]
) -> tuple[list[Models], int]:
    """Models per plan, the pool's last (largest) throughout where the reply is no allocation; and the cost."""
    prompts = [CODEC.render_allocate(query, plan, pool) for query, plan in zip(queries, plans, strict=True)]
    replies = allocator.chat(prompts, max_tokens=MAX_ALLOCATION_TOKENS)
    chosen = []
    for reply, plan in zip(replies, plans, strict=True):
        try:
            chosen.append(CODEC.parse_allocation(reply.text, plan, pool).models)
        except CodecError:
            chosen.append((pool[-1].name,) * len(plan.subtasks))
    return chosen, sum(allocator.cost(reply.usage) for reply in replies)


def execute(
    plans: Sequence[Plan], allocations: Sequence[Models], workers: Mapping[str, TinyModel], max_tokens: int
) -> Outcome:
    """Every plan, wave by wave: the subtasks whose dependencies are answered are one batch per model."""
    answers: list[dict[int, str]] = [{} for _ in plans]
    cost = 0
    while calls := _ready_calls(plans, allocations, answers):
        for model, where in calls.items():
            prompts: list[list[Message]] = []
            for task, position in where:
                subtask = plans[task].subtasks[position]
                prompts.append(CODEC.render_subtask(ask(""), plans[task], subtask, answers[task]))
            replies = workers[model].chat(prompts, max_tokens=max_tokens)
            cost += sum(workers[model].cost(reply.usage) for reply in replies)
            for (task, position), reply in zip(where, replies, strict=True):
                answers[task][position + 1] = CODEC.parse_answer(reply.text)
    return Outcome([_final_answer(plan, found) for plan, found in zip(plans, answers, strict=True)], cost)


def answer_whole(worker: TinyModel, queries: Sequence[str], max_tokens: int) -> Outcome:
    """Every query given to one model as it is."""
    replies = worker.chat([CODEC.render_query(ask(query)) for query in queries], max_tokens=max_tokens)
    return Outcome(
        [CODEC.parse_answer(reply.text) for reply in replies],
        sum(worker.cost(reply.usage) for reply in replies),
    )


def _ready_calls(
    plans: Sequence[Plan], allocations: Sequence[Models], answers: Sequence[dict[int, str]]
) -> dict[str, list[tuple[int, int]]]:
    """(task, position of subtask) of what can run now, by model."""
    calls: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for task, plan in enumerate(plans):
        for position, subtask in enumerate(plan.subtasks):
            if subtask.id not in answers[task] and all(
                dependency in answers[task] for dependency in subtask.depends_on
            ):
                calls[allocations[task][position]].append((task, position))
    return calls


def _final_answer(plan: Plan, answers: dict[int, str]) -> str:
    return answers[len(plan.subtasks)] if plan.answer is None else substitute(plan.answer, answers)
