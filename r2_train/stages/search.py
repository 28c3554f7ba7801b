"""`r2-train search`: the cheapest correct allocation of each kept plan, by grouped search; every scheme tried is logged.

A probe model's sureness of each step (alpha-quantile of its tokens' probabilities) starts the plan in groups by thresholds
that are fitted on validation plans. Correct: *downward*, the surest step moves to a cheaper group, and inside it to the cheapest
model that keeps the plan correct. Wrong: *upward*, the least sure step moves up until the plan is correct. So nine models
never mean 9^k schemes. Source: paper (grouped search), Division-of-Thoughts (quantile); what is ours: `docs/training.md`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from r2_serve.errors import ConfigError
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.router.synthesis import confidence
from r2_serve.types import Message, ModelGroup, Plan, Record, Sampling
from r2_train.config import SearchConfig
from r2_train.rollouts.progress import map_all, map_with_bar
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.stages.tasks import is_correct

SCHEMES = "schemes.jsonl"
SUMMARY = "summary.json"
GROUPS: tuple[ModelGroup, ...] = ("slm", "mlm", "llm")
ALWAYS, NEVER = 0.0, 1.1
"""Thresholds that every step reaches, or none."""

Models = tuple[str, ...]


class Scheme(Record):
    """One allocation that was run."""

    models: Models
    is_correct: bool | None
    """None where calls failed or the grader could not tell."""
    worker_cost_usd: Decimal
    move: str
    """What led to it: `initial`, `down:STEP`, `within:STEP`, `up:STEP`."""


class SearchedPlan(Record):
    """Every scheme tried for one plan, in order; `best` is the position of the cheapest correct one."""

    task_id: str
    query: str
    plan: Plan
    confidences: tuple[float, ...]
    """Of the probe, per step."""
    schemes: tuple[Scheme, ...]
    best: int | None

    @property
    def models(self) -> Models | None:
        return None if self.best is None else self.schemes[self.best].models


class SearchSummary(Record):
    """Counts over all plans."""

    num_plans: int
    num_solved: int
    num_schemes: int
    thresholds: tuple[float, ...]
    """From the cheapest group up: a step surer than the first starts in the cheapest group."""
    initial_accuracy: float
    initial_cost_usd: Decimal
    best_cost_usd: Decimal
    """Both of the solved plans' workers."""
    shares: dict[str, float]
    """Of the steps of the best schemes, by model."""


@dataclass(frozen=True)
class PlannedTask:
    """A task with the plan to allocate."""

    task: Task
    plan: Plan


@dataclass
class Searcher:
    """One `search`."""

    pool: ServedPool
    config: SearchConfig
    grader: Grader
    directory: Path
    thresholds: tuple[float, ...] = field(default=(), init=False)
    _executed: dict[tuple[str, Plan, Models], tuple[Rollout, bool | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.by_group = group_models(self.pool)
        self.probe = self.config.probe or _middle(self.pool)
        if self.probe not in self.pool.pool:
            raise ConfigError(f"search.probe {self.probe!r} is not in the pool {list(self.pool.pool)}")
        self._sampled = [
            self.pool.sampled(self.config.temperature, seed) for seed in range(1, self.config.num_executions)
        ]

    async def run(
        self, train: Sequence[PlannedTask], validation: Sequence[PlannedTask], console: Console
    ) -> SearchSummary:
        """Thresholds from `validation`, then every plan of `train` that has no row yet. Raises: RunError, SpendLimitReached."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.thresholds = await self.fit(validation[: self.config.num_fit])
        path = self.directory / SCHEMES
        done = {(row.task_id, row.plan): row for row in read_jsonl(path, SearchedPlan)}
        with JsonlLog(path) as log:

            async def work(item: PlannedTask) -> None:
                row = await self.search(item)
                done[(item.task.id, item.plan)] = row
                log.append(row)

            await map_with_bar(
                [item for item in train if (item.task.id, item.plan) not in done],
                work,
                num_at_once=self.pool.num_at_once,
                title="search",
                console=console,
                note=lambda: (
                    f"{sum(row.best is not None for row in done.values())} solved, {self.pool.cache.spent_usd:.6f} USD"
                ),
            )
        summary = self._summary([done[(item.task.id, item.plan)] for item in train])
        (self.directory / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n")
        return summary

    async def search(self, item: PlannedTask) -> SearchedPlan:
        """Downward from a correct start, upward from a wrong one (and downward again from where that ends)."""
        confidences = await self.confidences(item)
        trail = _Trail(self, item)
        level = self.initial(confidences)
        is_right = await trail.try_(self._models(level), "initial")
        surest_first = sorted(range(len(level)), key=lambda i: -confidences[i])
        if not is_right:
            is_right, level = await self._upward(trail, level, surest_first[::-1])
        if is_right:
            await self._downward(trail, level, surest_first)
        return SearchedPlan(
            task_id=item.task.id,
            query=item.task.query,
            plan=item.plan,
            confidences=tuple(round(c, 6) for c in confidences),
            schemes=tuple(trail.schemes),
            best=trail.best(),
        )

    async def _upward(
        self, trail: _Trail, level: list[int], least_sure_first: Sequence[int]
    ) -> tuple[bool, list[int]]:
        """One group up for the least sure step, then for the next, round after round, until the plan is right or at the top."""
        level = list(level)
        while any(step < len(self.by_group) - 1 for step in level):
            for i in least_sure_first:
                if level[i] == len(self.by_group) - 1:
                    continue
                level[i] += 1
                if not trail.has_room:
                    return False, level
                if await trail.try_(self._models(level), f"up:{i + 1}"):
                    return True, level
        return False, level

    async def _downward(self, trail: _Trail, level: Sequence[int], surest_first: Sequence[int]) -> None:
        """Each step, the surest first, through cheaper groups while the plan stays right; then inside its group."""
        models = list(self._models(level))
        for i in surest_first:
            for group in range(level[i] - 1, -1, -1):
                kept = await self._first_right(trail, models, i, self.by_group[group][-1:], "down")
                if kept is None:
                    break
                models[i] = kept
            group_now = next(names for names in self.by_group if models[i] in names)
            cheaper = group_now[: group_now.index(models[i])]
            models[i] = await self._first_right(trail, models, i, cheaper, "within") or models[i]

    async def _first_right(
        self, trail: _Trail, models: Sequence[str], i: int, candidates: Sequence[str], move: str
    ) -> str | None:
        for name in candidates:
            scheme = tuple(name if j == i else model for j, model in enumerate(models))
            if trail.has_room and await trail.try_(scheme, f"{move}:{i + 1}"):
                return name
        return None

    def _models(self, level: Sequence[int]) -> Models:
        """The most able model of each step's group: inside a group the search then looks for a cheaper one."""
        return tuple(self.by_group[group][-1] for group in level)

    # -- difficulty -----------------------------------------------------------------------------------------------

    async def confidences(self, item: PlannedTask) -> list[float]:
        """The probe's sureness of each step, its inputs being its own answers to the steps before."""
        outcome = await self.pool.run(
            f"probe-{item.task.id}",
            item.task.query,
            plan=item.plan,
            models=(self.probe,) * len(item.plan.subtasks),
        )
        if outcome.trace is None:
            return [0.0] * len(item.plan.subtasks)
        answers = {result.id: result.answer for result in outcome.trace.results}
        member = self.pool.members[self.probe]
        sure = []
        for subtask in item.plan.subtasks:
            inputs = {d: answers[d] for d in subtask.depends_on}
            messages = member.codec.render_subtask(
                (Message(role="user", content=item.task.query),), item.plan, subtask, inputs
            )
            reply = await self.pool.ask(
                self.probe,
                messages,
                Sampling(temperature=0.0, logprobs=True, max_tokens=member.config.max_tokens),
            )
            if reply.logprobs is None:
                raise ConfigError(
                    f"search.probe {self.probe!r} returns no log-probabilities: choose another model"
                )
            sure.append(confidence(reply.logprobs, self.config.alpha) or 0.0)
        return sure

    def initial(self, confidences: Sequence[float]) -> list[int]:
        """Group of each step: the first whose threshold its sureness reaches."""
        return [
            next((g for g, tau in enumerate(self.thresholds) if c >= tau), len(self.by_group) - 1)
            for c in confidences
        ]

    async def fit(self, plans: Sequence[PlannedTask]) -> tuple[float, ...]:
        """Thresholds whose initial schemes are cheapest within `max_accuracy_loss` of the most accurate on these plans."""
        if not plans:
            raise ConfigError("search needs validation plans to fit its thresholds on: none could be made")
        measured = await map_all(plans, self.confidences, num_at_once=self.pool.num_at_once)
        values = sorted(itertools.chain.from_iterable(measured))
        cuts = {
            values[round(q * (len(values) - 1) / (self.config.num_thresholds - 1))]
            for q in range(self.config.num_thresholds)
        }
        options = sorted({*cuts, ALWAYS, NEVER}, reverse=True)
        results: dict[tuple[float, ...], tuple[float, Decimal]] = {}
        for thresholds in itertools.combinations_with_replacement(options, len(self.by_group) - 1):
            self.thresholds = thresholds
            results[thresholds] = await self._initial_results(plans, measured)
        best = max(accuracy for accuracy, _ in results.values())
        good = [
            (cost, taus)
            for taus, (accuracy, cost) in results.items()
            if accuracy >= best - self.config.max_accuracy_loss
        ]
        return min(good)[1]

    async def _initial_results(
        self, plans: Sequence[PlannedTask], measured: Sequence[Sequence[float]]
    ) -> tuple[float, Decimal]:
        """Accuracy and workers' cost of the initial schemes under the thresholds of now."""
        schemes = [
            (item, self._models(self.initial(confidences)))
            for item, confidences in zip(plans, measured, strict=True)
        ]
        results = await map_all(
            schemes, lambda scheme: self.execute(*scheme), num_at_once=self.pool.num_at_once
        )
        cost = sum((outcome.worker_cost_usd for outcome, _ in results), Decimal(0))
        return sum(bool(is_right) for _, is_right in results) / len(plans), cost

    # -- execution ------------------------------------------------------------------------------------------------

    async def execute(self, item: PlannedTask, models: Models) -> tuple[Rollout, bool | None]:
        """The plan under a scheme, and whether all `num_executions` runs are right: the first greedy, the others sampled."""
        key = (item.task.id, item.plan, models)
        if key not in self._executed:
            self._executed[key] = await self._execute(item, models)
        return self._executed[key]

    async def _execute(self, item: PlannedTask, models: Models) -> tuple[Rollout, bool | None]:
        first, is_right = await self._once(self.pool, item, models)
        for pool in self._sampled:
            if is_right:
                _, is_right = await self._once(pool, item, models)
        return first, is_right

    async def _once(self, pool: ServedPool, item: PlannedTask, models: Models) -> tuple[Rollout, bool | None]:
        outcome = await pool.run(f"search-{item.task.id}", item.task.query, plan=item.plan, models=models)
        if outcome.error is not None and not outcome.is_refused:
            return outcome, None
        return outcome, await is_correct(self.grader, item.task, outcome.answer)

    def _summary(self, rows: Sequence[SearchedPlan]) -> SearchSummary:
        solved = [row for row in rows if row.best is not None]
        used = [model for row in solved for model in (row.models or ())]
        return SearchSummary(
            num_plans=len(rows),
            num_solved=len(solved),
            num_schemes=sum(len(row.schemes) for row in rows),
            thresholds=self.thresholds,
            initial_accuracy=sum(bool(row.schemes[0].is_correct) for row in rows) / max(1, len(rows)),
            initial_cost_usd=sum((row.schemes[0].worker_cost_usd for row in solved), Decimal(0)),
            best_cost_usd=sum(
                (row.schemes[row.best].worker_cost_usd for row in solved if row.best is not None), Decimal(0)
            ),
            shares={name: used.count(name) / max(1, len(used)) for name in self.pool.pool},
        )


@dataclass
class _Trail:
    """The schemes of one plan; none is run twice."""

    searcher: Searcher
    item: PlannedTask
    schemes: list[Scheme] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.schemes) < self.searcher.config.max_schemes

    async def try_(self, models: Models, move: str) -> bool:
        known: Mapping[Models, Scheme] = {scheme.models: scheme for scheme in self.schemes}
        if models not in known:
            outcome, is_right = await self.searcher.execute(self.item, models)
            self.schemes.append(
                Scheme(models=models, is_correct=is_right, worker_cost_usd=outcome.worker_cost_usd, move=move)
            )
            return bool(is_right)
        return bool(known[models].is_correct)

    def best(self) -> int | None:
        right = [(scheme.worker_cost_usd, i) for i, scheme in enumerate(self.schemes) if scheme.is_correct]
        return min(right)[1] if right else None


def group_models(pool: ServedPool) -> list[list[str]]:
    """The pool by capability group, cheapest group first, each cheapest first; empty groups left out."""
    cards = pool.cards
    groups = [[card.name for card in cards if card.group == group] for group in GROUPS]
    return [names for names in groups if names]


def _middle(pool: ServedPool) -> str:
    medium = [card.name for card in pool.cards if card.group == "mlm"]
    return medium[0] if medium else pool.pool[len(pool.pool) // 2]
