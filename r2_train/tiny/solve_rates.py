"""Labels for an allocator: the cheapest model whose solve *rate* on a subtask reaches a target.

Not the cheapest that happened to solve this instance: a model that is right half of the time would often be that
one, and errors compound along a plan. The rate is over fresh operands of the same digit lengths. Everything
here reads train tasks only, and exact answers only of these.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice

from r2_serve.lab.domains import Task, scan, words
from r2_serve.types import Plan
from r2_train.tiny.pool_execution import Models, execute
from r2_train.tiny.tiny_data import calculation_example, query_examples, solved_steps
from r2_train.tiny.tiny_models import Example, TinyModel

TARGETS = (0.9, 0.94, 0.97, 0.985, 1.0)
MAX_ACCURACY_LOSS = 0.01
"""The target chosen is the lowest whose plans are at most this much less accurate than the best target's."""

Rates = list[list[float]]
"""One list per subtask: the solve rate of each worker, in the pool's order (0 where it was not asked)."""


def words_rates(
    problems: Sequence[words.Problem], workers: Sequence[TinyModel], *, num_resamples: int, seed: int
) -> list[Rates]:
    """Rates for each subtask of each problem's reference plan.

    A worker is asked only about subtasks that no cheaper one solves every time.
    """
    rng = random.Random(f"solve-rates/{seed}")
    texts: list[list[list[str]]] = []
    for problem in problems:
        samples = [
            solved_steps(words.plan(fresh)) for fresh in islice(words.resamples(problem, rng), num_resamples)
        ]
        texts.append([list(column) for column in zip(*samples, strict=True)])
    rates: list[Rates] = [[[] for _ in columns] for columns in texts]
    for worker in workers:
        open_texts = (
            column
            for i, columns in enumerate(texts)
            for j, column in enumerate(columns)
            if max(rates[i][j], default=0) < 1
        )
        solved = _solved(worker, (text for column in open_texts for text in column))
        for columns, rows in zip(texts, rates, strict=True):
            for column, row in zip(columns, rows, strict=True):
                row.append(sum(solved.get(text, False) for text in column) / len(column))
    return rates


def scan_rates(tasks: Sequence[Task], workers: Sequence[TinyModel]) -> list[Rates]:
    """Phrases have no operands, so a rate is 1 or 0."""
    phrases = sorted({subtask.text for task in tasks for subtask in task.reference_plan.subtasks})
    examples = query_examples(
        Task(id=phrase, query=phrase, gold=scan.interpret(phrase), reference_plan=Plan.single(phrase))
        for phrase in phrases
    )
    columns = [dict(zip(phrases, worker.solves(examples), strict=True)) for worker in workers]
    return [
        [[float(column[subtask.text]) for column in columns] for subtask in task.reference_plan.subtasks]
        for task in tasks
    ]


def cheapest(rates: Rates, target: float, names: Sequence[str]) -> Models:
    """Per subtask the first model that reaches the target, else the best (the first of equals)."""
    return tuple(
        names[next((i for i, rate in enumerate(row) if rate >= target), row.index(max(row)))] for row in rates
    )


def choose_target(
    tasks: Sequence[Task], rates: Sequence[Rates], workers: Sequence[TinyModel], *, max_tokens: int
) -> float:
    """The lowest target that costs hardly any accuracy when train tasks are executed with its labels."""
    by_name = {worker.name: worker for worker in workers}
    accuracies: dict[float, float] = {}
    for target in TARGETS:
        labels = [cheapest(rows, target, list(by_name)) for rows in rates]
        outcome = execute([task.reference_plan for task in tasks], labels, by_name, max_tokens)
        accuracies[target] = outcome.accuracy([task.gold for task in tasks])
        print(
            f"solve-rate target {target}: accuracy {accuracies[target]:.3f}, cost {outcome.cost:.3e}",
            flush=True,
        )
    return min(
        target for target in TARGETS if accuracies[target] >= max(accuracies.values()) - MAX_ACCURACY_LOSS
    )


def _solved(worker: TinyModel, texts: Iterable[str]) -> dict[str, bool]:
    """Each distinct text once."""
    distinct = list(dict.fromkeys(texts))
    examples: list[Example] = [calculation_example(text) for text in distinct]
    return dict(zip(distinct, worker.solves(examples), strict=True))
