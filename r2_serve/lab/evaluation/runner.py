"""Runs policies over tasks into a run directory, and goes on where a killed run ended.

`run.json` is the manifest, `rows.jsonl` the results; that is all the state there is. Tasks are taken in order and each goes to
every policy in turn, so that what else the machine does falls on all alike. `random` comes after the others, as it
draws with the model shares that `r2` had.

What a crash can cost: tasks under way when the process dies are asked again, and what they had spent is in no row.
`max_cost_usd` stops new tasks; those under way end, so a run can pass it by what `num_at_once` tasks cost.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from pydantic import Field

from r2_serve.config import Config
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation.asker import Asker
from r2_serve.lab.evaluation.desk import EvalPolicy, Setting, outcome_of
from r2_serve.lab.evaluation.manifest import Manifest
from r2_serve.lab.evaluation.policies import R2, RANDOM, parse_policy, random_policy
from r2_serve.lab.evaluation.rows import ROWS, EvalRow, Key, merged, read_rows
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError

SHARES = "random_shares.json"


class RunOptions(Config):
    """How a run is carried out; none of it changes a result."""

    num_at_once: int = Field(default=32, ge=1)
    """(policy, task) pairs under way."""
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    """Of the whole directory, earlier runs included."""
    retry_errors: bool = False
    """Ask again where the last try failed or could not be graded for a fault of ours."""
    max_failures_in_a_row: int = Field(default=100, ge=1)
    """More, and the run stops: an endpoint that is gone must not turn every task into an error."""


@dataclass
class Standing:
    """How far a run is."""

    num_total: int
    num_done: int = 0
    num_correct: int = 0
    num_failed: int = 0
    cost_usd: Decimal = Decimal(0)
    stopped_because: str | None = None
    num_failures_in_a_row: int = field(default=0, repr=False)

    def count(self, row: EvalRow) -> None:
        self.num_done += 1
        self.num_correct += row.status == "correct"
        self.num_failed += row.status == "failed"
        self.num_failures_in_a_row = self.num_failures_in_a_row + 1 if row.status == "failed" else 0
        self.cost_usd += row.cost_usd


@dataclass(frozen=True)
class Work:
    """One thing to do."""

    policy: EvalPolicy
    task: Task

    @property
    def key(self) -> Key:
        return self.policy.name, self.task.id


RowSource = Callable[[Sequence[Work]], AsyncGenerator[EvalRow, None]]
"""Rows of all that is asked of it, as they end."""
OnRow = Callable[[Standing], None]


async def row_of(item: Work, asker: Asker, grader: Grader, setting: Setting) -> EvalRow:
    """Answered, graded, counted."""
    outcome = await outcome_of(item.policy, item.task, asker, setting)
    verdict = None
    if outcome.answer is not None:
        verdict = await grader.grade(item.task.benchmark, item.task.row, outcome.answer, task_id=item.task.id)
    return EvalRow.of(item.policy.name, item.task.id, outcome, verdict)


@dataclass
class Runner:
    """One run of one directory."""

    directory: Path
    manifest: Manifest
    tasks: Sequence[Task]
    setting: Setting
    asker: Asker
    grader: Grader
    options: RunOptions = field(default_factory=RunOptions)
    on_row: OnRow = lambda standing: None
    elsewhere: RowSource | None = None
    """Where the work is done if not on this event loop: `ray_data`."""

    async def run(self) -> Standing:
        """Everything that is not done yet.

        Raises: RunError where the directory is another run's, in use or cannot be written; SandboxUnavailable.
        """
        self.manifest.claim(self.directory)
        with JsonlLog(self.directory / ROWS) as log:
            rows = list(read_rows(self.directory))
            done = merged(rows)
            standing = self._standing(done, rows)
            self.on_row(standing)
            await self.grader.start(self.manifest.benchmark)
            await self._work_off(self._pending(self._first_policies(), done), log, done, standing)
            if RANDOM in self.manifest.policies and standing.stopped_because is None:
                drawn = random_policy(self._shares(done.values()))
                await self._work_off(self._pending([drawn], done), log, done, standing)
        if standing.num_done == standing.num_total:
            standing.stopped_because = None  # the limit was reached by the very last task
        return standing

    def _first_policies(self) -> list[EvalPolicy]:
        names = [name for name in self.manifest.policies if name != RANDOM]
        return [parse_policy(name, self.setting, self.manifest.policy_config) for name in names]

    def _pending(self, policies: Sequence[EvalPolicy], done: dict[Key, EvalRow]) -> list[Work]:
        work = [Work(policy, task) for task in self.tasks for policy in policies]
        return [
            item
            for item in work
            if item.key not in done or (self.options.retry_errors and done[item.key].may_be_retried)
        ]

    def _standing(self, done: dict[Key, EvalRow], rows: Iterable[EvalRow]) -> Standing:
        standing = Standing(num_total=len(self.tasks) * len(self.manifest.policies))
        for row in done.values():
            if not (self.options.retry_errors and row.may_be_retried):
                standing.count(row)
        standing.cost_usd = sum((row.cost_usd for row in rows), Decimal(0))
        standing.num_failures_in_a_row = 0
        return standing

    async def _work_off(
        self, pending: Sequence[Work], log: JsonlLog, done: dict[Key, EvalRow], standing: Standing
    ) -> None:
        """Row by row into `log`, until all is done or the run must stop; the first error of ours stops all, and its rows stay."""
        if standing.stopped_because is None:
            standing.stopped_because = self._why_stop(standing)
        if not pending or standing.stopped_because is not None:
            return

        def keep(row: EvalRow) -> None:
            log.append(row)
            done[row.key] = row
            standing.count(row)
            self.on_row(standing)
            standing.stopped_because = standing.stopped_because or self._why_stop(standing)

        if self.elsewhere is None:
            await self._work_here(pending, keep, standing)
            return
        async with aclosing(self.elsewhere(pending)) as rows:
            async for row in rows:
                keep(row)
                if standing.stopped_because is not None:
                    return

    async def _work_here(
        self, pending: Sequence[Work], keep: Callable[[EvalRow], None], standing: Standing
    ) -> None:
        """`num_at_once` at a time on this event loop."""
        queue = iter(pending)

        async def worker() -> None:
            while standing.stopped_because is None and (item := next(queue, None)) is not None:
                keep(await row_of(item, self.asker, self.grader, self.setting))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.options.num_at_once, len(pending))):
                    group.create_task(worker())
        except BaseExceptionGroup as failures:
            error = failures.exceptions[0]
            raise error from error.__cause__

    def _why_stop(self, standing: Standing) -> str | None:
        limit = self.options.max_cost_usd
        if limit is not None and standing.cost_usd >= limit:
            return (
                f"{standing.cost_usd:f} USD are spent; the limit is {limit:f}. Raise --max-cost-usd to go on"
            )
        if standing.num_failures_in_a_row > self.options.max_failures_in_a_row:
            return f"{standing.num_failures_in_a_row} tasks in a row failed; see their `detail` in {self.directory / ROWS}"
        return None

    def _shares(self, rows: Iterable[EvalRow]) -> dict[str, float]:
        """The share of subtasks that each model had under `r2`, fixed when `random` begins; none where `r2` did not run."""
        path = self.directory / SHARES
        if not path.exists():
            counts = Counter(
                model for row in rows if row.policy == R2 for model in row.outcome.subtask_models
            )
            shares = {model: counts[model] / counts.total() for model in self.setting.pool} if counts else {}
            write_whole(path, json.dumps(shares, indent=2))
        return read_shares(self.directory) or {}


def read_shares(directory: Path) -> dict[str, float] | None:
    """What `random` drew with: empty for uniform, None where it has not begun. Raises: RunError."""
    path = directory / SHARES
    if not path.exists():
        return None
    try:
        return {str(model): float(share) for model, share in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError) as e:
        raise RunError(f"{path} holds no shares: {e}") from e
