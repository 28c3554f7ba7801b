"""Runs many tasks through tiny models at once: decompose, allocate and execute, each step in batches.

Serving does this for one request at a time, with deadlines and retries; here are none, and every reply is
greedy. Cost is in parameter-tokens: (prompt + completion tokens) * parameters of the called model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from r2_serve.errors import CodecError
from r2_serve.prompts import Codec
from r2_serve.types import ModelCard, Plan, substitute
from r2_train.tiny.tiny_data import CODEC, MAX_SUBTASKS, ask
from r2_train.tiny.tiny_models import TinyModel

MAX_PLAN_TOKENS = 128
MAX_ALLOCATION_TOKENS = MAX_SUBTASKS + 1

Models = tuple[str, ...]
"""The model of each subtask."""


@dataclass(frozen=True)
class PoolRun:
    """The answers in task order, and the cost of all calls."""

    answers: list[str]
    cost: int

    def accuracy(self, golds: Sequence[str]) -> float:
        return sum(answer == gold for answer, gold in zip(self.answers, golds, strict=True)) / len(golds)


def decompose(
    decomposer: TinyModel, queries: Sequence[str], codec: Codec = CODEC
) -> tuple[list[Plan | None], int]:
    """A plan for each query, None if the reply has none; and the cost."""
    prompts = [codec.render_decompose(ask(query), MAX_SUBTASKS) for query in queries]
    replies, cost = decomposer.chat(prompts, max_tokens=MAX_PLAN_TOKENS)
    plans: list[Plan | None] = []
    for query, reply in zip(queries, replies, strict=True):
        try:
            plans.append(codec.parse_plan(reply, query))
        except CodecError:
            plans.append(None)
    return plans, cost


def allocate(
    allocator: TinyModel, queries: Sequence[str], plans: Sequence[Plan], pool: Sequence[ModelCard]
) -> tuple[list[Models], int]:
    """The models for each plan, only the pool's last (largest) if the reply has none; and the cost."""
    prompts = [
        CODEC.render_allocate(ask(query), plan, pool) for query, plan in zip(queries, plans, strict=True)
    ]
    replies, cost = allocator.chat(prompts, max_tokens=MAX_ALLOCATION_TOKENS)
    chosen = []
    for reply, plan in zip(replies, plans, strict=True):
        try:
            chosen.append(CODEC.parse_allocation(reply, plan, pool).models)
        except CodecError:
            chosen.append((pool[-1].name,) * len(plan.subtasks))
    return chosen, cost


def execute(
    plans: Sequence[Plan], allocations: Sequence[Models], workers: Mapping[str, TinyModel], max_tokens: int
) -> PoolRun:
    """Runs all plans level by level; the subtasks of one level are one batch per model."""
    answers: list[dict[int, str]] = [{} for _ in plans]
    cost = 0
    for level in zip_longest(*(plan.levels for plan in plans), fillvalue=()):
        calls: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for task, ids in enumerate(level):
            for i in ids:
                calls[allocations[task][i - 1]].append((task, i))
        for model, places in calls.items():
            prompts = [
                CODEC.render_subtask(ask(""), plans[task], plans[task].subtasks[i - 1], answers[task])
                for task, i in places
            ]
            replies, spent = workers[model].chat(prompts, max_tokens=max_tokens)
            cost += spent
            for (task, i), reply in zip(places, replies, strict=True):
                answers[task][i] = CODEC.parse_answer(reply)
    return PoolRun([_final_answer(plan, found) for plan, found in zip(plans, answers, strict=True)], cost)


def answer_whole(worker: TinyModel, queries: Sequence[str], max_tokens: int) -> PoolRun:
    """Gives every whole query to one model."""
    replies, cost = worker.chat([CODEC.render_query(ask(query)) for query in queries], max_tokens=max_tokens)
    return PoolRun([CODEC.parse_answer(reply) for reply in replies], cost)


def _final_answer(plan: Plan, answers: dict[int, str]) -> str:
    return answers[len(plan.subtasks)] if plan.answer is None else substitute(plan.answer, answers)
