"""`r2-train search`: finds the cheapest correct allocation of each kept plan, and logs every one it tried.

A probe model's confidence in each step (the alpha-quantile of its token probabilities) gives the step's first
group, by thresholds that are fitted on validation plans. *Downward*, from a correct scheme: the most
confident step moves to a cheaper group, and inside it to the cheapest model that keeps the plan correct.
*Upward*, from a wrong scheme: the least confident step moves up until the plan is correct. So nine models do
not mean 9^k schemes. Sources: grouped search, arXiv 2506.05901; quantile, arXiv 2502.04392;
`docs/training.md` has ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.router.synthesis import confidence
from r2_serve.types import Message, ModelGroup, Plan, Record, Sampling
from r2_train.config import SearchConfig
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.rows import StageRow, complete_rows, write_summary
from r2_train.stages.tasks import verdict

SCHEMES = "schemes.jsonl"
GROUPS: tuple[ModelGroup, ...] = ("slm", "mlm", "llm")
ALWAYS, NEVER = 0.0, 1.1
"""A threshold that every step reaches, and one that none reaches."""

Models = tuple[str, ...]
"""The model of each step."""


class Scheme(Record):
    """One allocation that was run."""

    models: Models
    is_correct: bool | None
    """None if calls failed or the grader could not tell."""
    error: str | None = None
    """Why calls failed; None if they did not."""
    worker_cost_usd: Decimal
    move: str
    """The move that led to it: `initial`, `down:STEP`, `within:STEP` or `up:STEP`."""


class SearchedPlan(StageRow):
    """Every scheme that was tried for one plan, in order."""

    task_id: str
    query: str
    plan: Plan
    confidences: tuple[float, ...]
    """The probe's confidence in each step, from 0 to 1."""
    schemes: tuple[Scheme, ...]
    best: int | None
    """Position of the cheapest correct scheme; None if none is correct."""

    @property
    def key(self) -> tuple[str, Plan]:
        return self.task_id, self.plan

    @property
    def is_kept(self) -> bool:
        return self.best is not None

    @property
    def failure(self) -> str | None:
        return next((scheme.error for scheme in self.schemes if scheme.error is not None), None)

    @property
    def models(self) -> Models | None:
        return None if self.best is None else self.schemes[self.best].models


class SearchSummary(Record):
    """Counts over all plans."""

    num_plans: int
    num_solved: int
    num_schemes: int
    thresholds: tuple[float, ...]
    """One threshold per group but the last; a step that reaches the first starts in the cheapest group."""
    initial_accuracy: float
    initial_cost_usd: Decimal
    """Worker cost of the solved plans' first schemes."""
    best_cost_usd: Decimal
    """Worker cost of the solved plans' best schemes."""
    shares: dict[str, float]
    """Share of the best schemes' steps that each model gets."""


@dataclass(frozen=True)
class PlannedTask:
    """A task with the plan to allocate."""

    task: Task
    plan: Plan

    @property
    def key(self) -> tuple[str, Plan]:
        return self.task.id, self.plan


@dataclass
class Searcher:
    """One `search`."""

    pool: ServedPool
    config: SearchConfig
    grader: Grader
    directory: Path
    thresholds: tuple[float, ...] = field(default=(), init=False)
    _executed: dict[tuple[tuple[str, Plan], Models], tuple[Rollout, bool | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.by_group = group_models(self.pool)
        self.top = len(self.by_group) - 1
        self.probe = self.config.probe or self.pool.middle
        if self.probe not in self.pool.pool:
            raise ConfigError(
                f"search.probe is {self.probe!r}, but must be one of the pool's {list(self.pool.pool)}"
            )
        seeds = range(1, self.config.num_executions)
        self._sampled = [self.pool.sampled(self.config.temperature, seed) for seed in seeds]

    async def run(
        self, train: Sequence[PlannedTask], validation: Sequence[PlannedTask], console: Console
    ) -> SearchSummary:
        """Fits the thresholds on `validation`, then searches every plan of `train` that has no row yet.

        Raises: RunError; SpendLimitReached and EngineUnavailable, after which the same call goes on.
        """
        self.thresholds = await self.fit(validation[: self.config.num_fit])
        items = {item.key: item for item in train}
        path = self.directory / SCHEMES
        rows = await complete_rows(path, SearchedPlan, items, self.search, pool=self.pool, console=console)
        summary = self._summary(rows)
        write_summary(self.directory, summary)
        return summary

    async def search(self, item: PlannedTask) -> SearchedPlan:
        """Searches downward from a correct start; from a wrong one first upward, then downward again."""
        confidences = await self.confidences(item)
        trail = _Trail(self, item)
        groups = self.initial(confidences)
        is_right = await trail.tries(self._models(groups), "initial")
        surest_first = sorted(range(len(groups)), key=lambda i: -confidences[i])
        if not is_right:
            is_right, groups = await self._upward(trail, groups, surest_first[::-1])
        if is_right:
            await self._downward(trail, groups, surest_first)
        return SearchedPlan(
            task_id=item.task.id,
            query=item.task.query,
            plan=item.plan,
            confidences=tuple(round(c, 6) for c in confidences),
            schemes=tuple(trail.schemes),
            best=trail.best(),
        )

    async def _upward(
        self, trail: _Trail, start: Sequence[int], least_sure_first: Sequence[int]
    ) -> tuple[bool, list[int]]:
        """Moves one step after the other up one group until the plan is right or all are at the top."""
        groups = list(start)
        while any(group < self.top for group in groups):
            for i in least_sure_first:
                if groups[i] == self.top:
                    continue
                groups[i] += 1
                if not trail.has_room:
                    return False, groups
                if await trail.tries(self._models(groups), f"up:{i + 1}"):
                    return True, groups
        return False, groups

    async def _downward(self, trail: _Trail, groups: Sequence[int], surest_first: Sequence[int]) -> None:
        """Moves each step to cheaper groups, then to a cheaper model in its group."""
        models = list(self._models(groups))
        for i in surest_first:
            for group in range(groups[i] - 1, -1, -1):
                kept = await self._first_right(trail, models, i, self.by_group[group][-1:], "down")
                if kept is None:
                    break
                models[i] = kept
            names = next(names for names in self.by_group if models[i] in names)
            cheaper = names[: names.index(models[i])]
            models[i] = await self._first_right(trail, models, i, cheaper, "within") or models[i]

    async def _first_right(
        self, trail: _Trail, models: Sequence[str], i: int, candidates: Sequence[str], move: str
    ) -> str | None:
        for name in candidates:
            scheme = (*models[:i], name, *models[i + 1 :])
            if trail.has_room and await trail.tries(scheme, f"{move}:{i + 1}"):
                return name
        return None

    def _models(self, groups: Sequence[int]) -> Models:
        """The most able model of each step's group. The search then looks for a cheaper one in the group."""
        return tuple(self.by_group[group][-1] for group in groups)

    async def confidences(self, item: PlannedTask) -> list[float]:
        """The probe's confidence in each step. Its own answers are the inputs of later steps."""
        query, steps = item.task.query, item.plan.subtasks
        models = (self.probe,) * len(steps)
        rollout = await self.pool.run(f"probe-{item.task.id}", query, plan=item.plan, models=models)
        if rollout.trace is None:
            return [0.0] * len(steps)
        answers = {result.id: result.answer for result in rollout.trace.results}
        member = self.pool.members[self.probe]
        sampling = Sampling(temperature=0.0, logprobs=True, max_tokens=member.config.reply_limit)
        found = []
        for step in steps:
            inputs = {d: answers[d] for d in step.depends_on}
            conversation = (Message(role="user", content=query),)
            codec = member.codec.with_prompts(self.pool.virtual.prompts)
            messages = codec.render_subtask(conversation, item.plan, step, inputs)
            reply = await self.pool.ask(self.probe, messages, sampling)
            if reply.logprobs is None:
                raise ConfigError(
                    f"search.probe {self.probe!r} returns no log-probabilities: choose another model"
                )
            found.append(confidence(reply.logprobs, self.config.alpha) or 0.0)
        return found

    def initial(self, confidences: Sequence[float]) -> list[int]:
        """The group of each step: the first whose threshold the step's confidence reaches."""
        return [next((g for g, tau in enumerate(self.thresholds) if c >= tau), self.top) for c in confidences]

    async def fit(self, plans: Sequence[PlannedTask]) -> tuple[float, ...]:
        """The cheapest thresholds whose initial schemes lose at most `max_accuracy_loss` on `plans`."""
        if not plans:
            raise ConfigError(
                "search fits its thresholds on validation plans, but `collect` kept none: "
                "raise data.num_validation or collect.num_candidates"
            )
        measured = await map_all(plans, self.confidences, num_at_once=self.pool.num_at_once)
        values = sorted(itertools.chain.from_iterable(measured))
        n = self.config.num_thresholds
        cuts = {values[round(q * (len(values) - 1) / (n - 1))] for q in range(n)}
        options = sorted({*cuts, ALWAYS, NEVER}, reverse=True)
        results: dict[tuple[float, ...], tuple[float, Decimal]] = {}
        for thresholds in itertools.combinations_with_replacement(options, self.top):
            self.thresholds = thresholds
            results[thresholds] = await self._initial_results(plans, measured)
        least = max(accuracy for accuracy, _ in results.values()) - self.config.max_accuracy_loss
        return min((cost, taus) for taus, (accuracy, cost) in results.items() if accuracy >= least)[1]

    async def _initial_results(
        self, plans: Sequence[PlannedTask], measured: Sequence[Sequence[float]]
    ) -> tuple[float, Decimal]:
        """Accuracy and worker cost of the initial schemes under the current thresholds."""
        schemes = [(item, self._models(self.initial(c))) for item, c in zip(plans, measured, strict=True)]
        results = await map_all(
            schemes, lambda scheme: self.execute(*scheme), num_at_once=self.pool.num_at_once
        )
        cost = sum((rollout.worker_cost_usd for rollout, _ in results), Decimal(0))
        return sum(bool(is_right) for _, is_right in results) / len(plans), cost

    async def execute(self, item: PlannedTask, models: Models) -> tuple[Rollout, bool | None]:
        """The first, greedy run of the plan, and True if all `num_executions` runs are right."""
        if (item.key, models) not in self._executed:
            first, is_right = await self._once(self.pool, item, models)
            for pool in self._sampled:
                if is_right:
                    _, is_right = await self._once(pool, item, models)
            self._executed[item.key, models] = first, is_right
        return self._executed[item.key, models]

    async def _once(self, pool: ServedPool, item: PlannedTask, models: Models) -> tuple[Rollout, bool | None]:
        task = item.task
        rollout = await pool.run(f"search-{task.id}", task.query, plan=item.plan, models=models)
        return rollout, await verdict(self.grader, task, rollout)

    def _summary(self, rows: Sequence[SearchedPlan]) -> SearchSummary:
        solved = [(row.schemes[0], row.schemes[row.best]) for row in rows if row.best is not None]
        used = [model for _, best in solved for model in best.models]
        return SearchSummary(
            num_plans=len(rows),
            num_solved=len(solved),
            num_schemes=sum(len(row.schemes) for row in rows),
            thresholds=self.thresholds,
            initial_accuracy=sum(bool(row.schemes[0].is_correct) for row in rows) / max(1, len(rows)),
            initial_cost_usd=sum((initial.worker_cost_usd for initial, _ in solved), Decimal(0)),
            best_cost_usd=sum((best.worker_cost_usd for _, best in solved), Decimal(0)),
            shares={name: used.count(name) / max(1, len(used)) for name in self.pool.pool},
        )


@dataclass
class _Trail:
    """The schemes that were run for one plan. None is run twice."""

    searcher: Searcher
    item: PlannedTask
    schemes: list[Scheme] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.schemes) < self.searcher.config.max_schemes

    async def tries(self, models: Models, move: str) -> bool:
        """True if the plan is right with these models."""
        known = next((scheme for scheme in self.schemes if scheme.models == models), None)
        if known is None:
            rollout, is_right = await self.searcher.execute(self.item, models)
            cost = rollout.worker_cost_usd
            error = rollout.error if rollout.has_failed else None
            known = Scheme(models=models, is_correct=is_right, error=error, worker_cost_usd=cost, move=move)
            self.schemes.append(known)
        return bool(known.is_correct)

    def best(self) -> int | None:
        right = [(scheme.worker_cost_usd, i) for i, scheme in enumerate(self.schemes) if scheme.is_correct]
        return min(right)[1] if right else None


def group_models(pool: ServedPool) -> list[list[str]]:
    """The pool's models by capability group, cheapest first; empty groups are left out."""
    groups = [[card.name for card in pool.cards if card.group == group] for group in GROUPS]
    return [names for names in groups if names]
