"""The best setting of each kind of baseline, chosen on development problems.

Every worker answers every step of the development plans once, on exact inputs. All pairs, triples and
thresholds are then weighed by arithmetic. The inputs are those of a plan whose steps are all right, so
accuracy is exact; the cost of a plan that goes wrong on the way is close.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from r2_serve.lab.domains import Task, everyday_steps
from r2_serve.lab.ladder.policies import (
    CODEC,
    SIGNALS,
    Choice,
    Policy,
    Signal,
    Step,
    agreement,
    cascade,
    constant,
    final_only,
)
from r2_serve.lab.ladder.replies import Replies
from r2_serve.prompts.compact import step_kind
from r2_serve.types import Subtask, substitute

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
NUM_THRESHOLDS = 20
MARGINS = (0.0, 0.005, 0.01)
"""Settings are chosen at most this far below the strongest worker's accuracy on development problems."""
WEIGHTS = tuple(2.0**k for k in range(-2, 10))

Cell = tuple[str, int]
"""Kind and size of a step."""


@dataclass(frozen=True)
class Candidate:
    """One setting of a baseline, and its figures on development problems."""

    name: str
    policy: Policy = field(repr=False)
    accuracy: float
    cost_usd: float
    """Mean cost of the workers per problem."""


@dataclass(frozen=True)
class StepTable:
    """What each worker (column) makes of each step (row)."""

    models: tuple[str, ...]
    problem: NDArray[np.int64]
    """The problem of each step."""
    is_last: Bools
    cells: tuple[Cell, ...]
    right: Bools
    cost_usd: Floats
    least: Floats
    quantile: Floats
    text: NDArray[np.int64]
    """Equal numbers stand for equal replies; 0 for none."""

    @property
    def num_problems(self) -> int:
        return int(self.problem[-1]) + 1

    def figures(self, right: Bools, cost_usd: Floats) -> tuple[float, float]:
        """Accuracy and mean cost per problem, of a verdict and a cost for each step."""
        num_wrong = np.bincount(self.problem, ~right, self.num_problems)
        return float((num_wrong == 0).mean()), float(cost_usd.sum() / self.num_problems)


async def step_table(tasks: Sequence[Task], prices: Mapping[str, float], replies: Replies) -> StepTable:
    """Asks every worker for every step of the tasks' reference plans."""
    rows = [(i, *row) for i, task in enumerate(tasks) for row in _exact_steps(task)]
    models = tuple(prices)
    await replies.ask((model, prompt, ()) for *_, prompt, _ in rows for model in models)
    found = [[replies.of(model, prompt) for model in models] for *_, prompt, _ in rows]
    numbers: dict[str, int] = {"": 0}
    return StepTable(
        models=models,
        problem=np.array([row[0] for row in rows]),
        is_last=np.array([row[1] for row in rows]),
        cells=tuple(row[2] for row in rows),
        right=np.array(
            [
                [CODEC.parse_answer(r.text) == row[4] for r in line]
                for row, line in zip(rows, found, strict=True)
            ]
        ),
        cost_usd=np.array(
            [[prices[m] * r.tokens / 1e6 for m, r in zip(models, line, strict=True)] for line in found]
        ),
        least=np.array([[r.least for r in line] for line in found]),
        quantile=np.array([[r.quantile for r in line] for line in found]),
        text=np.array([[numbers.setdefault(r.text, len(numbers)) for r in line] for line in found]),
    )


def _exact_steps(task: Task) -> Iterator[tuple[bool, Cell, str, str]]:
    """Whether it is the last step, its cell, its prompt and its exact answer, for each step."""
    plan, answers = task.reference_plan, dict[int, str]()
    for subtask in plan.subtasks:
        (message,) = CODEC.render_subtask((), plan, subtask, answers)
        answers[subtask.id] = everyday_steps.solve(substitute(subtask.text, answers))
        is_last = subtask.id == len(plan.subtasks)
        yield is_last, cell_of(subtask, message.text), message.text, answers[subtask.id]


def cell_of(subtask: Subtask, prompt: str) -> Cell:
    """The kind of a step, and its size: a third of the tokens of its prompt."""
    return step_kind(subtask), len(prompt.split()) // 3


def cheapest_within(options: Sequence[Candidate], margin: float, strongest: float) -> Candidate:
    """The cheapest option at most `margin` below `strongest`, or else the most accurate one."""
    able = [option for option in options if option.accuracy >= strongest - margin]
    if able:
        return min(able, key=lambda option: option.cost_usd)
    return max(options, key=lambda option: (option.accuracy, -option.cost_usd))


def tuned(table: StepTable, strongest: float) -> list[Candidate]:
    """The best settings of every kind of baseline at every margin, without repetitions."""
    kinds = [
        list(constants(table)), list(finals(table)), list(pairs(table)), list(triples(table)),
        list(agreements(table)),
    ]  # fmt: skip
    best = [cheapest_within(options, margin, strongest) for options in kinds[1:] for margin in MARGINS]
    return list({option.name: option for option in [*kinds[0], *best]}.values())


def constants(table: StepTable) -> Iterator[Candidate]:
    for i, model in enumerate(table.models):
        yield Candidate(
            f"all:{model}", constant(model), *table.figures(table.right[:, i], table.cost_usd[:, i])
        )


def finals(table: StepTable) -> Iterator[Candidate]:
    for (i, small), (j, large) in itertools.combinations(enumerate(table.models), 2):
        right = np.where(table.is_last, table.right[:, j], table.right[:, i])
        cost = np.where(table.is_last, table.cost_usd[:, j], table.cost_usd[:, i])
        yield Candidate(f"final-only:{small},{large}", final_only(small, large), *table.figures(right, cost))


def pairs(table: StepTable) -> Iterator[Candidate]:
    """`dot`: a small worker, and a large one where the small one is unsure."""
    for signal in SIGNALS:
        sure = _signal(table, signal)
        for i, j in itertools.combinations(range(len(table.models)), 2):
            for threshold in thresholds(sure[:, i]):
                is_kept = sure[:, i] >= threshold
                names = (table.models[i], table.models[j])
                yield Candidate(
                    f"dot:{','.join(names)} at {threshold:.4f} {signal}",
                    cascade(names, (threshold,), signal),
                    *table.figures(
                        np.where(is_kept, table.right[:, i], table.right[:, j]),
                        table.cost_usd[:, i] + ~is_kept * table.cost_usd[:, j],
                    ),
                )


def triples(table: StepTable) -> Iterator[Candidate]:
    """`cascade` of three workers."""
    for signal in SIGNALS:
        sure = _signal(table, signal)
        for i, j, k in itertools.combinations(range(len(table.models)), 3):
            names = tuple(table.models[n] for n in (i, j, k))
            for first, second in itertools.product(thresholds(sure[:, i]), thresholds(sure[:, j])):
                is_first, is_second = sure[:, i] >= first, sure[:, j] >= second
                right = np.where(is_second, table.right[:, j], table.right[:, k])
                later = table.cost_usd[:, j] + ~is_second * table.cost_usd[:, k]
                yield Candidate(
                    f"cascade:{','.join(names)} at {first:.4f}, {second:.4f} {signal}",
                    cascade(names, (first, second), signal),
                    *table.figures(
                        np.where(is_first, table.right[:, i], right), table.cost_usd[:, i] + ~is_first * later
                    ),
                )


def agreements(table: StepTable) -> Iterator[Candidate]:
    """Two workers; where they differ, a third one."""
    for i, j in itertools.combinations(range(len(table.models)), 2):
        agree = (table.text[:, i] == table.text[:, j]) & (table.text[:, i] > 0)
        for k in range(len(table.models)):
            names = (table.models[i], table.models[j], table.models[k])
            if k in (i, j):
                continue
            cost = table.cost_usd[:, i] + table.cost_usd[:, j] + ~agree * table.cost_usd[:, k]
            right = np.where(agree, table.right[:, i], table.right[:, k])
            yield Candidate(f"agree:{','.join(names)}", agreement(*names), *table.figures(right, cost))


def lookups(table: StepTable) -> Iterator[Candidate]:
    """The cheapest able worker by kind and size, which it is told; the weight of certainty is tuned."""
    cells = sorted(set(table.cells))
    number = np.array([cells.index(cell) for cell in table.cells])
    counts = np.bincount(number, minlength=len(cells))[:, None]

    def means(values: Floats | Bools) -> Floats:
        return np.stack([np.bincount(number, column, len(cells)) for column in values.T], 1) / counts

    rates, cost = np.clip(means(table.right), 1e-3, 0.9995), means(table.cost_usd)
    for weight in WEIGHTS:
        best = (cost / cost.max() - weight * np.log(rates)).argmin(1)
        chosen = {cell: table.models[best[n]] for n, cell in enumerate(cells)}
        rows = np.arange(len(number)), best[number]
        policy = _by_cell(chosen, table.models[-1])
        yield Candidate(
            f"lookup at {weight:g}", policy, *table.figures(table.right[rows], table.cost_usd[rows])
        )


def skills(table: StepTable) -> dict[str, dict[str, float]]:
    """The share of the steps of each kind that each worker solves."""
    kinds = np.array([kind for kind, _ in table.cells])
    return {
        model: {str(kind): float(table.right[kinds == kind, i].mean()) for kind in np.unique(kinds)}
        for i, model in enumerate(table.models)
    }


def thresholds(sure: Floats) -> list[float]:
    """Confidences that cut the steps into parts of equal size."""
    values = np.quantile(sure, np.linspace(0, 1, NUM_THRESHOLDS))
    return sorted({float(value) for value in (*values, 1.1)})


def _signal(table: StepTable, signal: Signal) -> Floats:
    return table.least if signal == "least" else table.quantile


def _by_cell(chosen: Mapping[Cell, str], other: str) -> Policy:
    def choose(step: Step) -> Choice:
        return constant(chosen.get(cell_of(step.subtask, step.prompt), other))(step)

    return choose
