"""`r2-train collect`: candidate plans per training task, run on the served pool, graded and scored; the best correct one is kept.

Differs from the paper in what it leaves open: weights, K, and how the terms are measured (`docs/training.md`). Restartable: a
task whose row is written is not asked again, and calls under way when a run is killed are found in the cache.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from r2_serve.config import LimitsConfig
from r2_serve.errors import CodecError, EngineError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.evaluation import judging
from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.prompts import get_codec
from r2_serve.router.decomposer import check_plan, incoherence, num_unused, weighted_scores
from r2_serve.types import Plan, Record, Sampling
from r2_train.config import CollectConfig
from r2_train.rollouts.call_cache import SpendLimitReached
from r2_train.rollouts.progress import map_with_bar
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.tasks import is_correct

PLANS = "plans.jsonl"
SUMMARY = "summary.json"


class Candidate(Record):
    """One distinct plan of a task, and what it came to."""

    plan: Plan
    num_drawn: int
    """How many of the samples were this very plan."""
    is_correct: bool | None
    """None where the calls failed or the grader could not tell."""
    practicality_tokens: int = 0
    """Tokens that the executor used to solve all steps."""
    incoherence: float = 0.0
    cost_usd: Decimal = Decimal(0)
    error: str | None = None


class CollectedTask(Record):
    """Every candidate of one task. `kept` is a position among them; None where none is correct."""

    task_id: str
    query: str
    candidates: tuple[Candidate, ...]
    num_invalid: int
    """Samples that were no plan, or broke a limit."""
    scores: tuple[float, ...] = ()
    """Of the correct candidates, in order; lower is better."""
    kept: int | None = None

    @property
    def plan(self) -> Plan | None:
        return None if self.kept is None else self.candidates[self.kept].plan


class CollectSummary(Record):
    """Counts over all tasks; the dropped ones say why."""

    num_tasks: int
    num_kept: int
    num_dropped_no_valid_plan: int
    num_dropped_none_correct: int
    num_dropped_not_known: int
    """No candidate correct, and at least one with failed calls or an answer that could not be graded."""
    num_samples: int
    num_invalid_samples: int
    mean_subtasks_kept: float
    mean_depth_kept: float

    @classmethod
    def of(cls, rows: Sequence[CollectedTask], num_samples: int) -> CollectSummary:
        plans = [row.plan for row in rows if row.plan is not None]
        why = Counter(_why_dropped(row) for row in rows if row.plan is None)
        return cls(
            num_tasks=len(rows),
            num_kept=len(plans),
            num_dropped_no_valid_plan=why["no_valid_plan"],
            num_dropped_none_correct=why["none_correct"],
            num_dropped_not_known=why["not_known"],
            num_samples=len(rows) * num_samples,
            num_invalid_samples=sum(row.num_invalid for row in rows),
            mean_subtasks_kept=sum(len(plan.subtasks) for plan in plans) / max(1, len(plans)),
            mean_depth_kept=sum(plan.depth for plan in plans) / max(1, len(plans)),
        )


@dataclass(frozen=True)
class Collector:
    """One `collect`. `pool`'s decomposer is the teacher unless the config names one."""

    pool: ServedPool
    config: CollectConfig
    grader: Grader
    directory: Path

    async def run(self, tasks: Sequence[Task], console: Console) -> CollectSummary:
        """Every task that has no row yet. Raises: RunError; SpendLimitReached, after which the same call goes on."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / PLANS
        done = {row.task_id: row for row in read_jsonl(path, CollectedTask)}
        with JsonlLog(path) as log:

            async def work(task: Task) -> None:
                row = await self.collect(task)
                done[task.id] = row
                log.append(row)

            await map_with_bar(
                [task for task in tasks if task.id not in done],
                work,
                num_at_once=self.pool.num_at_once,
                title="collect",
                console=console,
                note=lambda: (
                    f"{sum(row.kept is not None for row in done.values())} kept, {self.pool.cache.spent_usd:.6f} USD"
                ),
            )
        summary = CollectSummary.of([done[task.id] for task in tasks], self.config.num_candidates)
        (self.directory / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
        return summary

    async def collect(self, task: Task) -> CollectedTask:
        """K samples, each distinct plan run once."""
        samples = [await self._sample(task, seed) for seed in range(self.config.num_candidates)]
        distinct = Counter(sample for sample in samples if sample is not None)
        candidates = [await self._candidate(task, plan, count) for plan, count in distinct.items()]
        correct = [i for i, candidate in enumerate(candidates) if candidate.is_correct]
        scores = self._scores([candidates[i] for i in correct])
        return CollectedTask(
            task_id=task.id,
            query=task.query,
            candidates=tuple(candidates),
            num_invalid=samples.count(None),
            scores=tuple(scores),
            kept=correct[scores.index(min(scores))] if correct else None,
        )

    async def _sample(self, task: Task, seed: int) -> Plan | None:
        section = self.pool.routing.virtual_models[self.pool.virtual_model].decomposer
        teacher, limits = self.config.teacher or section.model, self.pool.routing.limits
        codec = self.pool.members[teacher].codec
        sampling = Sampling(
            max_tokens=section.max_tokens,
            temperature=self.config.temperature,
            seed=seed,
            json_schema=codec.plan_schema(limits.max_subtasks),
        )
        adapter = section.adapter if teacher == section.model else None
        try:
            reply = await self.pool.ask(
                teacher, codec.render_decompose(task.query, limits.max_subtasks), sampling, adapter
            )
            return checked_plan(reply.text, task.query, codec.name, limits)
        except SpendLimitReached:
            raise
        except EngineError:
            return None

    async def _candidate(self, task: Task, plan: Plan, num_drawn: int) -> Candidate:
        executor = self.config.executor or self.pool.largest
        outcome = await self.pool.run(
            f"collect-{task.id}", task.query, plan=plan, models=(executor,) * len(plan.subtasks)
        )
        if outcome.error is not None and not outcome.is_refused:
            return Candidate(
                plan=plan,
                num_drawn=num_drawn,
                is_correct=None,
                error=outcome.error,
                cost_usd=outcome.cost_usd,
            )
        return Candidate(
            plan=plan,
            num_drawn=num_drawn,
            is_correct=await is_correct(self.grader, task, outcome.answer),
            practicality_tokens=sum(call.usage.total_tokens for call in outcome.calls),
            incoherence=await self._incoherence(task, plan, outcome),
            cost_usd=outcome.cost_usd,
            error=outcome.error,
        )

    async def _incoherence(self, task: Task, plan: Plan, outcome: Rollout) -> float:
        """The paper's third term: sum over dependent pairs of 1 - coherence, judged by a model where one is configured."""
        if self.config.judge is None or outcome.trace is None:
            return incoherence(plan)
        by_id = {subtask.id: subtask for subtask in plan.subtasks}
        pairs = [(by_id[d], subtask) for subtask in plan.subtasks for d in subtask.depends_on]
        judged = [await self._judged(task, f"{a.text}\nthen: {b.text}") for a, b in pairs]
        return sum(1 - coherence for coherence in judged) + num_unused(plan)

    async def _judged(self, task: Task, pair: str) -> float:
        assert self.config.judge is not None
        messages = judging.score_prompt(
            task.query, "Does the second step follow coherently from the first?", pair
        )
        reply = await self.pool.ask(self.config.judge, messages, Sampling(temperature=0.0))
        return judging.parse_score(reply.text) / judging.MAX_SCORE

    def _scores(self, candidates: Sequence[Candidate]) -> list[float]:
        if not candidates:
            return []
        scores = weighted_scores(
            [candidate.plan for candidate in candidates],
            self.config.weights,
            practicality=[float(candidate.practicality_tokens) for candidate in candidates],
            incoherence=[candidate.incoherence for candidate in candidates],
        )
        assert all(map(math.isfinite, scores))
        return scores


def checked_plan(text: str, query: str, codec: str, limits: LimitsConfig) -> Plan | None:
    """A reply as a plan within the limits; None where it is none."""
    try:
        plan = get_codec(codec).parse_plan(text, query)
        check_plan(plan, limits)
    except CodecError:
        return None
    return plan


def _why_dropped(row: CollectedTask) -> str:
    if not row.candidates:
        return "no_valid_plan"
    return (
        "not_known" if any(candidate.is_correct is None for candidate in row.candidates) else "none_correct"
    )
