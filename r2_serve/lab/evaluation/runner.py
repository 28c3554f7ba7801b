"""Runs policies over tasks into a run directory, and goes on where a killed run ended.

`run.json` is the manifest and `rows.jsonl` the results; that is all the state there is. Tasks are taken in
order and each goes to every policy in turn, so that other work of the machine slows all policies equally.
`random` comes after the others, because it draws with the model shares that `r2` had.

A crash costs this much: tasks under way when the process dies are asked again, and what they had spent is in
no row. `max_cost_usd` stops new tasks; those under way end, so a run can pass it by what `num_at_once` tasks
cost.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import takewhile
from pathlib import Path

from pydantic import Field

from r2_serve.config import Config
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.asker import Asker
from r2_serve.lab.evaluation.booked import Keeper, purpose_of
from r2_serve.lab.evaluation.desk import EvalPolicy, Setting, outcome_of
from r2_serve.lab.evaluation.manifest import Manifest, Revision
from r2_serve.lab.evaluation.policies import R2, RANDOM
from r2_serve.lab.evaluation.policy_names import parse_policy, random_policy
from r2_serve.lab.evaluation.rows import ROWS, EvalRow, Key, merged, read_rows
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError

SHARES = "random_shares.json"


class RunOptions(Config):
    """How a run is carried out; none of it changes a result."""

    num_at_once: int = Field(default=32, ge=1)
    """(policy, task) pairs under way at a time."""
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    """Spending limit of the whole directory, earlier runs included."""
    retry_errors: bool = False
    """Ask again if the last try failed or could not be graded because of an internal error."""
    max_failures_in_a_row: int = Field(default=100, ge=1)
    """After more failures the run stops, so that a dead endpoint does not turn every task into an error."""


@dataclass
class Standing:
    """How far a run is."""

    num_total: int
    num_done: int = 0
    num_correct: int = 0
    num_failed: int = 0
    cost_usd: Decimal = Decimal(0)
    """What was spent; replies that the book had already cost nothing again."""
    stopped_because: str | None = None
    num_failures_in_a_row: int = field(default=0, repr=False)
    last_failure: str = field(default="", repr=False)
    """Why the last task that failed has no answer."""

    def count(self, row: EvalRow) -> None:
        self.num_done += 1
        self.num_correct += row.status == "correct"
        self.num_failed += row.status == "failed"
        self.last_failure = row.detail if row.status == "failed" else self.last_failure
        self.num_failures_in_a_row = self.num_failures_in_a_row + 1 if row.status == "failed" else 0
        self.cost_usd += row.spent_usd


@dataclass(frozen=True)
class Work:
    """One task to do under one policy."""

    policy: EvalPolicy
    task: Task

    @property
    def key(self) -> Key:
        return self.policy.name, self.task.id


RowSource = Callable[[Sequence[Work]], AsyncGenerator[EvalRow, None]]
"""Gives a row for each piece of work, in the order in which they end."""
Keep = Callable[[EvalRow], None]
OnRow = Callable[[Standing], None]


@dataclass(frozen=True)
class Examiner:
    """Asks and grades."""

    asker: Asker
    grader: Grader
    setting: Setting

    async def row(self, item: Work) -> EvalRow:
        """One task, answered and graded."""
        task = item.task
        owner = f"{self.setting.seed}/{item.policy.name}/{task.benchmark}/{task.id}"
        with purpose_of(owner, task) as purpose:
            outcome = await outcome_of(item.policy, task, self.asker, self.setting)
        reused = {"num_reused": purpose.num_reused, "unpaid_usd": purpose.reused_usd}
        outcome = outcome.model_copy(update=reused)
        verdict = None
        if outcome.answer is not None:
            verdict = await self.grader.judge(task, outcome.answer)
        return EvalRow.of(item.policy.name, task, outcome, verdict)

    async def work_off(self, work: Iterable[Work], keep: Keep, *, num_at_once: int) -> None:
        """Give a row of each piece of work to `keep`, as they end. The first internal error stops all."""
        queue = iter(work)

        async def worker() -> None:
            for item in queue:
                keep(await self.row(item))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_at_once):
                    group.create_task(worker())
        except BaseExceptionGroup as failures:
            error = failures.exceptions[0]
            raise error from error.__cause__


@dataclass
class Runner:
    """One run of one directory."""

    directory: Path
    manifest: Manifest
    """The run as it is asked for now. Further policies that the directory holds are left as they are."""
    tasks: Sequence[Task]
    examiner: Examiner
    options: RunOptions = field(default_factory=RunOptions)
    on_row: OnRow = lambda standing: None
    revised: Sequence[Revision] = ()
    """What was done anew in the rows that the directory has."""
    keeper: Keeper | None = None
    source: RowSource | None = None
    """Does the work in other processes (`ray_data`); None does it on this event loop."""

    async def run(self) -> Standing:
        """Do everything that is not done yet.

        Raises: RunError if the directory holds another run, is in use or cannot be written;
        SandboxUnavailable.
        """
        self.manifest.joined(self.directory, self.tasks, self.revised).claim(self.directory)
        with JsonlLog(self.directory / ROWS) as log:
            rows = list(read_rows(self.directory))
            done = merged(rows)
            standing = self._standing(done, rows)
            self.on_row(standing)
            if self.tasks[0].grader is None:
                await self.examiner.grader.start(self.tasks[0].benchmark)
            await self._work_off(self._pending(self._first_policies(), done), log, done, standing)
            if RANDOM in self.manifest.policies and standing.stopped_because is None:
                drawn = random_policy(self._shares(done.values()))
                await self._work_off(self._pending([drawn], done), log, done, standing)
        if standing.num_done == standing.num_total:
            standing.stopped_because = None  # the limit was reached by the very last task
        return standing

    def _first_policies(self) -> list[EvalPolicy]:
        names = [name for name in self.manifest.policies if name != RANDOM]
        return [parse_policy(name, self.examiner.setting, self.manifest.policy_config) for name in names]

    def _pending(self, policies: Sequence[EvalPolicy], done: dict[Key, EvalRow]) -> list[Work]:
        work = [Work(policy, task) for task in self.tasks for policy in policies]
        return [item for item in work if item.key not in done or self._is_tried_again(done[item.key])]

    def _is_tried_again(self, row: EvalRow) -> bool:
        return self.options.retry_errors and row.may_be_retried

    def _standing(self, done: dict[Key, EvalRow], rows: Iterable[EvalRow]) -> Standing:
        standing = Standing(num_total=len(self.tasks) * len(self.manifest.policies))
        for row in done.values():
            if row.policy in self.manifest.policies and not self._is_tried_again(row):
                standing.count(row)
        standing.cost_usd = sum((row.spent_usd for row in rows), Decimal(0))
        standing.num_failures_in_a_row = 0
        return standing

    async def _work_off(
        self, pending: Sequence[Work], log: JsonlLog, done: dict[Key, EvalRow], standing: Standing
    ) -> None:
        """Append each row to `log` until all is done or the run must stop; rows before an error stay."""
        standing.stopped_because = standing.stopped_because or self._why_stop(standing)
        if not pending or standing.stopped_because is not None:
            return

        def keep(row: EvalRow) -> None:
            log.append(row)
            done[row.key] = row
            standing.count(row)
            self.on_row(standing)
            standing.stopped_because = standing.stopped_because or self._why_stop(standing)

        if self.source is None:
            work = takewhile(lambda _: standing.stopped_because is None, pending)
            num_at_once = min(self.options.num_at_once, len(pending))
            await self.examiner.work_off(work, keep, num_at_once=num_at_once)
            return
        async with aclosing(self.source(pending)) as rows:
            async for row in rows:
                keep(row)
                if standing.stopped_because is not None:
                    return

    def _why_stop(self, standing: Standing) -> str | None:
        if self.keeper is not None and self.keeper.fault is not None:
            return self.keeper.fault
        limit, num_failures = self.options.max_cost_usd, standing.num_failures_in_a_row
        if limit is not None and standing.cost_usd >= limit:
            spent = f"{standing.cost_usd:f} USD are spent; the limit is {limit:f}"
            return f"{spent}. Raise --max-cost-usd to go on"
        if num_failures > self.options.max_failures_in_a_row:
            where = f"all are in {self.directory / ROWS}"
            return f"{num_failures} tasks in a row failed; the last: {standing.last_failure}; {where}"
        return None

    def _shares(self, rows: Iterable[EvalRow]) -> dict[str, float]:
        """The share of subtasks that each model had under `r2` when `random` began; empty without `r2`."""
        path = self.directory / SHARES
        if not path.exists():
            counts = Counter(
                model for row in rows if row.policy == R2 for model in row.outcome.subtask_models
            )
            pool = self.examiner.setting.pool
            shares = {model: counts[model] / counts.total() for model in pool} if counts else {}
            write_whole(path, json.dumps(shares, indent=2))
        return read_shares(self.directory) or {}


def read_shares(directory: Path) -> dict[str, float] | None:
    """The shares that `random` drew with: empty for uniform, None before it has begun. Raises: RunError."""
    path = directory / SHARES
    if not path.exists():
        return None
    try:
        return {str(model): float(share) for model, share in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as e:
        raise RunError(f"{path} holds no shares: {e}") from e
