"""`r2-train collect`: samples plans for each task, runs them on the pool, and keeps the best correct one.

The paper leaves the weights, K and the measure of each term open; `docs/training.md` has ours. A task that
has a row is not asked again, and the cache holds the calls of a run that was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Self

from pydantic import Field
from rich.console import Console

from r2_serve.config import LimitsConfig
from r2_serve.errors import CodecError, EngineError, EngineRefused, OperatorFault
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation import judging
from r2_serve.prompts import Codec
from r2_serve.prompts.conversation import asked
from r2_serve.router.decomposer import check_plan, incoherence, num_unused, weighted_scores
from r2_serve.types import Plan, Record, Sampling
from r2_train.config import CollectConfig
from r2_train.rollouts.call_cache import SpendLimitReached
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.rows import StageRow, complete_rows, write_summary
from r2_train.stages.tasks import verdict

PLANS = "plans.jsonl"
WHOLE = Plan.single("Answer the question.")
"""The plan of one step: serving sends the query itself, so every text of this step does the same."""


class Candidate(Record):
    """One distinct plan of a task and its result."""

    plan: Plan
    num_drawn: int
    """Number of samples that were this plan."""
    is_correct: bool | None
    """None if calls failed or the grader could not tell."""
    practicality_tokens: int = 0
    """Tokens that the executor used for all steps."""
    incoherence: float = 0.0
    cost_usd: Decimal = Decimal(0)
    error: str | None = None


class CollectedTask(StageRow):
    """Every candidate of one task."""

    task_id: str
    query: str
    candidates: tuple[Candidate, ...]
    num_invalid: int
    """Samples that were no plan, or broke a limit."""
    invalid: dict[str, int] = Field(default_factory=dict)
    """The reasons of the invalid samples, with their numbers."""
    failed_sample: str | None = None
    """Why a call for a sample failed; None if none did."""
    scores: tuple[float, ...] = ()
    """Scores of the correct candidates, in order; lower is better."""
    kept: int | None = None
    """Position of the best correct candidate; None if no candidate is correct."""

    @property
    def key(self) -> str:
        return self.task_id

    @property
    def is_kept(self) -> bool:
        return self.kept is not None

    @property
    def failure(self) -> str | None:
        failed = (c.error for c in self.candidates if c.is_correct is None and c.error is not None)
        return self.failed_sample or next(failed, None)

    @property
    def plan(self) -> Plan | None:
        return None if self.kept is None else self.candidates[self.kept].plan


class CollectSummary(Record):
    """Counts over all tasks, with the reasons of the dropped ones."""

    num_tasks: int
    num_kept: int
    num_dropped_no_valid_plan: int
    num_dropped_none_correct: int
    num_dropped_not_known: int
    """Tasks without a correct candidate, of which at least one candidate could not be judged."""
    num_samples: int
    num_invalid_samples: int
    invalid_samples: dict[str, int]
    """Numbers of the invalid samples by reason."""
    mean_subtasks_kept: float
    mean_depth_kept: float

    @classmethod
    def from_rows(cls, rows: Sequence[CollectedTask], num_samples: int) -> Self:
        plans = [row.plan for row in rows if row.plan is not None]
        dropped = Counter(_why_dropped(row) for row in rows if row.plan is None)
        return cls(
            num_tasks=len(rows),
            num_kept=len(plans),
            num_dropped_no_valid_plan=dropped["no_valid_plan"],
            num_dropped_none_correct=dropped["none_correct"],
            num_dropped_not_known=dropped["not_known"],
            num_samples=len(rows) * num_samples,
            num_invalid_samples=sum(row.num_invalid for row in rows),
            invalid_samples=dict(sum((Counter(row.invalid) for row in rows), Counter()).most_common()),
            mean_subtasks_kept=sum(len(plan.subtasks) for plan in plans) / max(1, len(plans)),
            mean_depth_kept=sum(plan.depth for plan in plans) / max(1, len(plans)),
        )


@dataclass(frozen=True)
class Collector:
    """One `collect`. The pool's decomposer is the teacher unless the config names another model."""

    pool: ServedPool
    config: CollectConfig
    grader: Grader
    directory: Path

    async def run(self, tasks: Sequence[Task], console: Console) -> CollectSummary:
        """Collects for every task that has no row yet.

        Raises: RunError; SpendLimitReached and EngineUnavailable, after which the same call goes on.
        """
        by_id = {task.id: task for task in tasks}
        path = self.directory / PLANS
        rows = await complete_rows(path, CollectedTask, by_id, self.collect, pool=self.pool, console=console)
        summary = CollectSummary.from_rows(rows, self.config.num_candidates)
        write_summary(self.directory, summary)
        return summary

    async def collect(self, task: Task) -> CollectedTask:
        """Draws K samples and runs each distinct plan once."""
        samples = [await self._sample(task, seed) for seed in range(self.config.num_candidates)]
        distinct = Counter(sample for sample in samples if isinstance(sample, Plan))
        invalid = Counter(sample.reason for sample in samples if isinstance(sample, CodecError))
        failed = [sample for sample in samples if isinstance(sample, EngineError)]
        candidates = [await self._candidate(task, plan, count) for plan, count in distinct.items()]
        correct = [i for i, candidate in enumerate(candidates) if candidate.is_correct]
        scores = self._scores([candidates[i] for i in correct])
        return CollectedTask(
            task_id=task.id,
            query=task.query,
            candidates=tuple(candidates),
            num_invalid=invalid.total(),
            invalid=dict(invalid),
            failed_sample=f"{type(failed[0]).__name__}: {failed[0].message}" if failed else None,
            scores=tuple(scores),
            kept=correct[scores.index(min(scores))] if correct else None,
        )

    async def _sample(self, task: Task, seed: int) -> Plan | CodecError | EngineError:
        """A plan, or why there is none: the reply is not valid, or the call failed."""
        section = self.pool.routing.virtual_models[self.pool.virtual_model].decomposer
        teacher, limits = self.config.teacher or section.model, self.pool.routing.limits
        codec = self.pool.members[teacher].codec.with_prompts(section.prompts)
        messages = codec.render_decompose(asked(task.query), limits.max_subtasks)
        sampling = Sampling(
            max_tokens=section.max_tokens,
            temperature=self.config.temperature,
            seed=seed,
            json_schema=codec.plan_schema(limits.max_subtasks),
        )
        adapter = section.adapter if teacher == section.model else None
        try:
            reply = await self.pool.ask(teacher, messages, sampling, adapter)
        except SpendLimitReached:
            raise
        except EngineError as e:
            is_verdict = isinstance(e, EngineRefused) and not isinstance(e, OperatorFault)
            return CodecError(e.message, f"refused ({e.message[:120]})") if is_verdict else e
        try:
            plan = checked_plan(reply.text, task.query, codec, limits)
        except CodecError as e:
            return e
        return WHOLE if self.pool.is_whole(plan) else plan

    async def _candidate(self, task: Task, plan: Plan, num_drawn: int) -> Candidate:
        models = (self.config.executor or self.pool.middle,) * len(plan.subtasks)
        pool = self.pool.in_context("stated")
        rollout = await pool.run(f"collect-{task.id}", task.query, plan=plan, models=models)
        candidate = Candidate(
            plan=plan,
            num_drawn=num_drawn,
            is_correct=await verdict(self.grader, task, rollout),
            cost_usd=rollout.cost_usd,
            error=rollout.error,
        )
        if rollout.has_failed:
            return candidate
        measured = {
            "practicality_tokens": sum(call.usage.total_tokens for call in rollout.calls),
            "incoherence": await self._incoherence(task, plan, rollout),
        }
        return candidate.model_copy(update=measured)

    async def _incoherence(self, task: Task, plan: Plan, rollout: Rollout) -> float:
        """The paper's third term: the sum of 1 - coherence over dependent pairs."""
        if self.config.judge is None or rollout.trace is None:
            return incoherence(plan)
        texts = {subtask.id: subtask.text for subtask in plan.subtasks}
        pairs = [(texts[d], subtask.text) for subtask in plan.subtasks for d in subtask.depends_on]
        judged = [await self._judged(self.config.judge, task, f"{a}\nthen: {b}") for a, b in pairs]
        return sum(1 - coherence for coherence in judged) + num_unused(plan)

    async def _judged(self, judge: str, task: Task, pair: str) -> float:
        question = "Does the second step follow coherently from the first?"
        messages = judging.score_prompt(task.query, question, pair)
        reply = await self.pool.ask(judge, messages, Sampling(temperature=0.0))
        return judging.parse_score(reply.text) / judging.MAX_SCORE

    def _scores(self, candidates: Sequence[Candidate]) -> list[float]:
        if not candidates:
            return []
        return weighted_scores(
            [candidate.plan for candidate in candidates],
            self.config.weights,
            practicality=[float(candidate.practicality_tokens) for candidate in candidates],
            incoherence=[candidate.incoherence for candidate in candidates],
        )


def checked_plan(text: str, query: str, codec: Codec, limits: LimitsConfig) -> Plan:
    """The plan in a reply. Raises: CodecError if there is none or it breaks a limit."""
    plan = codec.parse_plan(text, query)
    check_plan(plan, limits)
    return plan


def _why_dropped(row: CollectedTask) -> str:
    if not row.candidates and row.failure is None:
        return "no_valid_plan"
    is_known = row.failure is None and all(c.is_correct is not None for c in row.candidates)
    return "none_correct" if is_known else "not_known"
