"""Answers tasks from a book under every policy: fits on one half, reports on the other, several times.

The halves are drawn by task, at random with fixed seeds; tasks with one prompt stay together. No model is
called.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from r2_serve.errors import BookError, counted
from r2_serve.gates.fitted import Answers, FittedPolicy, run_gate
from r2_serve.gates.table import Floats, Ints, OutcomeTable
from r2_serve.lab.outcomes import baselines
from r2_serve.lab.outcomes.fitting import fit
from r2_serve.lab.outcomes.goals import Target, choose, most_accurate, run_policy

BEST_SINGLE, ORACLE, MIX, NEIGHBOURS = "best single", "oracle", "random mix of two", "kNN on the prompt"
CONFIDENCE, AGREEMENT = "confidence cascade", "agreement gate"
FITTED, ACCURATE = "fitted gate", "gate at any cost"
REFERENCE = "reference"
ROWS = (REFERENCE, BEST_SINGLE, ORACLE, MIX, NEIGHBOURS, CONFIDENCE, AGREEMENT, FITTED, ACCURATE)
"""The rows of a report; the confidence cascade stands in it only if the book has confidences."""
FEWEST_TASKS = 20
"""A smaller book has halves on which nothing can be fitted."""


@dataclass(frozen=True)
class Split:
    """One fitting half and its reporting half."""

    number: int
    reported: Ints
    """The tasks of the reporting half, as rows of the table."""
    answers: dict[str, Answers]
    """The answers of each row to the reporting half."""
    policy: FittedPolicy


@dataclass(frozen=True)
class Replay:
    """All splits of one book."""

    book: OutcomeTable
    """All tasks."""
    table: OutcomeTable
    """The tasks to which the reference has a reply: those that are compared."""
    reference: str
    target: Target | None
    seed: int
    splits: tuple[Split, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that every split has."""
        return tuple(row for row in ROWS if all(row in split.answers for split in self.splits))

    def each(self, row: str, value: Callable[[Answers], float]) -> Floats:
        """A figure of one row in every split."""
        return np.array([value(split.answers[row]) for split in self.splits])

    def cost_ratios(self, row: str) -> Floats:
        """The mean cost of a task divided by the reference's, in every split; NaN if that is 0."""
        own, other = (self.each(name, lambda a: a.mean_cost_usd) for name in (row, REFERENCE))
        return np.where(other > 0, own / np.where(other > 0, other, 1.0), np.nan)

    def by_task(self, row: str, value: Callable[[Answers], Floats]) -> Floats:
        """The mean of a figure of one row over the splits that report a task, for each task; NaN if none."""
        total, count = np.zeros(len(self.table)), np.zeros(len(self.table))
        for split in self.splits:
            total[split.reported] += value(split.answers[row])
            count[split.reported] += 1
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def replay(
    table: OutcomeTable,
    *,
    reference: str | None = None,
    target: Target | None = None,
    num_splits: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Replay:
    """Fit and report `num_splits` times. The reference is the target's model or the best single one.

    Raises: BookError if the book lacks the reference, or is too small.
    """
    name = reference or (target.model if target else table.models[baselines.best_single(table)])
    compared = table.with_reply_of(name)
    if compared.num_prompts < FEWEST_TASKS:
        found = f"the book has {counted(len(compared), 'task')} with a reply of {name!r}"
        prompts = "" if compared.num_prompts == len(compared) else f" and {compared.num_prompts} prompts"
        raise BookError(f"{found}{prompts}; a replay needs at least {FEWEST_TASKS} with different prompts")
    if target is not None and target.model != name:
        raise BookError(f"the target names {target.model!r}, but the reference is {name!r}")
    jobs = [(number, seed + number) for number in range(num_splits)]
    splits = []
    for split in _splits(_Job(compared, name, target), jobs):
        splits.append(split)
        progress(len(splits))
    return Replay(table, compared, name, target, seed, tuple(splits))


@dataclass(frozen=True)
class _Job:
    """What all splits share."""

    table: OutcomeTable
    reference: str
    target: Target | None

    def split(self, number: int, seed: int) -> Split:
        fitted, reported = self.table.halves(seed)
        fitting, reporting = self.table.take(fitted), self.table.take(reported)
        found = fit(fitting, seed)
        policy = choose(found, self.reference, self.target)
        answers = {name: answer(reporting) for name, answer in self._policies(fitting)}
        answers[FITTED] = run_policy(policy, reporting)
        answers[ACCURATE] = run_gate(found.gate(most_accurate(found)), reporting)
        return Split(number, reported, answers, policy)

    def _policies(self, fitting: OutcomeTable) -> Iterator[tuple[str, baselines.Policy]]:
        at = fitting.place(self.reference)
        accuracy = float(fitting.accuracy[at])
        yield REFERENCE, baselines.single(at)
        yield BEST_SINGLE, baselines.single(baselines.best_single(fitting))
        yield ORACLE, baselines.oracle
        yield MIX, baselines.random_mix(fitting, accuracy)
        yield NEIGHBOURS, baselines.neighbours(fitting, accuracy)
        cascade = baselines.confidence_cascade(fitting, accuracy)
        if cascade is not None:
            yield CONFIDENCE, cascade
        yield AGREEMENT, baselines.agreement_gate(fitting, accuracy)


def _splits(job: _Job, jobs: Sequence[tuple[int, int]]) -> Iterator[Split]:
    """All splits in order, in as many processes as there are processors."""
    num_processes = min(len(jobs), os.cpu_count() or 1)
    if num_processes == 1:
        yield from (job.split(*args) for args in jobs)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sklearn.feature_extraction.text", __name__])
    with ProcessPoolExecutor(num_processes, context, _start, (job,)) as pool:
        yield from pool.map(_split, jobs)


_job: _Job | None = None


def _start(job: _Job) -> None:
    """Keep the job in a worker process, and its matrix library to one thread."""
    from threadpoolctl import threadpool_limits

    global _job
    _job = job
    threadpool_limits(1)


def _split(args: tuple[int, int]) -> Split:
    assert _job is not None
    return _job.split(*args)
