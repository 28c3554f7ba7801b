"""The labels of an allocator: the cheapest model whose solve *rate* on a subtask reaches a target.

The cheapest model that happened to solve one instance is a worse label: a model that is right half of the
time would often be that one, and errors add up along a plan. The rate is over new operands with the same
numbers of digits. Only training tasks are read here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice

from r2_serve.lab.domains import Task, scan, words
from r2_train.tiny.pool_execution import Models, execute
from r2_train.tiny.tiny_data import calculation_example, query_example, solved_steps
from r2_train.tiny.tiny_models import TinyModel

TARGETS = (0.9, 0.94, 0.97, 0.985, 1.0)
MAX_ACCURACY_LOSS = 0.01
"""The lowest target is chosen whose plans are at most this much less accurate than the best target's."""

Rates = list[list[float]]
"""The solve rates of each subtask: one for each worker in the pool's order, 0 if it was not asked."""


def words_rates(
    problems: Sequence[words.Problem], workers: Sequence[TinyModel], *, num_resamples: int, seed: int
) -> list[Rates]:
    """The rates for each subtask of each problem's reference plan.

    A worker is not asked about subtasks that a cheaper one always solves.
    """
    rng = random.Random(f"solve-rates/{seed}")
    texts: list[list[tuple[str, ...]]] = []
    for problem in problems:
        resamples = islice(words.resamples(problem, rng), num_resamples)
        samples = [solved_steps(words.plan(resample)) for resample in resamples]
        texts.append(list(zip(*samples, strict=True)))
    rates: list[Rates] = [[[] for _ in columns] for columns in texts]
    cells = [
        cell for pair in zip(texts, rates, strict=True) for cell in zip(*pair, strict=True)
    ]  # each subtask's texts, with its rates
    for worker in workers:
        asked = (text for column, row in cells if max(row, default=0) < 1 for text in column)
        solved = _solved(worker, asked)
        for column, row in cells:
            row.append(sum(solved.get(text, False) for text in column) / len(column))
    return rates


def scan_rates(tasks: Sequence[Task], workers: Sequence[TinyModel]) -> list[Rates]:
    """The rates for each subtask. Phrases have no operands, so a rate is 1 or 0."""
    phrases = sorted({subtask.text for task in tasks for subtask in task.reference_plan.subtasks})
    examples = [query_example(phrase, scan.interpret(phrase)) for phrase in phrases]
    columns = [dict(zip(phrases, worker.solves(examples), strict=True)) for worker in workers]
    return [
        [[float(column[subtask.text]) for column in columns] for subtask in task.reference_plan.subtasks]
        for task in tasks
    ]


def cheapest(rates: Rates, target: float, names: Sequence[str]) -> Models:
    """The first model of each subtask that reaches the target, or else the first of the best."""
    return tuple(
        names[next((i for i, rate in enumerate(row) if rate >= target), row.index(max(row)))] for row in rates
    )


def choose_target(
    tasks: Sequence[Task], rates: Sequence[Rates], workers: Sequence[TinyModel], *, max_tokens: int
) -> float:
    """The lowest target that hardly costs accuracy when training tasks are executed with its labels."""
    by_name = {worker.name: worker for worker in workers}
    plans, golds = [task.reference_plan for task in tasks], [task.gold for task in tasks]
    accuracies: dict[float, float] = {}
    for target in TARGETS:
        labels = [cheapest(rows, target, list(by_name)) for rows in rates]
        run = execute(plans, labels, by_name, max_tokens)
        accuracies[target] = accuracy = run.accuracy(golds)
        print(f"solve-rate target {target}: accuracy {accuracy:.3f}, cost {run.cost:.3e}", flush=True)
    least = max(accuracies.values()) - MAX_ACCURACY_LOSS
    return min(target for target in TARGETS if accuracies[target] >= least)


def _solved(worker: TinyModel, texts: Iterable[str]) -> dict[str, bool]:
    """True for each distinct calculation that the worker solves."""
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, worker.solves([calculation_example(t) for t in distinct]), strict=True))
