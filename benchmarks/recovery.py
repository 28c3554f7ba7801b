"""A price that rises tenfold, a model that goes, a model that comes: the everyday allocator as it was, after
a refit of seconds, and after a full training on the changed pool.

`python benchmarks/training.py recover runs/retrain/everyday-0` calls this. All three allocators choose for
the same plans of held-out problems. What a pool can save is measured against its largest model on every step
of these plans; `share` is the part of a fully trained router's saving that another one reaches.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from r2_serve.config import NumpyEngineConfig
from r2_serve.engines import make_engine
from r2_serve.lab.domains import everyday
from r2_serve.lab.ladder.policies import constant, price
from r2_serve.lab.ladder.replies import Replies
from r2_serve.lab.ladder.router import Pair
from r2_serve.lab.ladder.study import Bench, Row, Seed, compared, measured, planned, routed
from r2_serve.lab.ladder.tuning import Candidate
from r2_serve.lab.statistics import Interval, resampled_means
from r2_serve.types import Engine, ModelCard, Record
from r2_train.config import MODULES, PoolConfig, TrainConfig
from r2_train.rollouts.described_pool import described
from r2_train.run import TrainingRun

AS_IT_WAS, REFITTED, ANEW = "as it was", "refit", "trained anew"
TIMES_AS_DEAR = 10
REFIT: dict[str, JsonValue] = {"max_steps": 60, "learning_rate": 1e-3}
"""The trainer of a refit, which starts from the allocator as it was."""
REFIT_MARKETS = 1
HEADINGS = ("pool", "allocator", "right", "µUSD", "saved", "points (95 % CI)", "share (95 % CI)", "CPU s")


class Recovered(Record):
    """One allocator on one changed pool."""

    pool: str
    allocator: str
    """`AS_IT_WAS`, `REFITTED` or `ANEW`."""
    accuracy: float
    cost_usd: float
    """Mean cost of a problem, the router's own calls included."""
    saving: float
    """The part that is saved of the cost of the pool's largest model on every step of the same plans."""
    points: float
    """Accuracy less that of the allocator that was trained anew."""
    points_ci95: Interval
    share: float
    """The saving divided by that of the allocator that was trained anew."""
    share_ci95: Interval
    largest_accuracy: float
    largest_cost_usd: float
    cpu_seconds: float | None = None
    """What the allocator took; None if it was there."""


@dataclass
class Recovery:
    """One finished run whose pool changes."""

    config: TrainConfig
    source: Path
    """The directory of the run: its plans and its best pair."""
    out: Path
    bench: Bench
    seed: Seed
    console: Console
    _engines: dict[str, Engine] = field(default_factory=dict)

    @classmethod
    async def of(
        cls, config: TrainConfig, source: Path, out: Path, num_test: int, console: Console
    ) -> Recovery:
        """The plans that the run's decomposer writes for held-out problems."""
        pool, best = described(config.pool), source / "best"
        engines = {card.name: _numpy(f"embedded:{card.name}") for card in pool.cards}
        pair = Pair(str(best / "decomposer"), str(best / "allocator"))
        engines |= {name: _numpy(name) for name in (pair.decomposer, pair.allocator)}
        tasks = everyday.tasks("test", num_test)
        untuned = Candidate("largest", constant(pool.largest), accuracy=0.0, cost_usd=0.0)
        bench = Bench(tasks, pool.cards, Replies(engines), candidates=(), lookup=untuned)
        planner, chooser = (price(pool.module_model(module)) for module in MODULES)
        seed = await planned(bench, Seed(config.seed, pair, planner, chooser))
        return cls(config, source, out, bench, seed, console, engines)

    async def rows(self, model: str) -> list[Recovered]:
        """The rows of all changes of one model."""
        pool, best = self.config.pool, self.seed.pair.allocator
        usd = Decimal(str(self.bench.prices[model])) * TIMES_AS_DEAR
        dear = pool.model_copy(update={"prices": {model: usd}})
        gone = pool.model_copy(update={"without": (model,)})
        without, _ = anew = self.trained(gone, f"without-{model}")
        return [
            *await self._of_change(f"{model} {TIMES_AS_DEAR} times as dear", dear, best),
            *await self._of_change(f"without {model}", gone, best, anew),
            *await self._of_change(f"{model} comes", pool, without, (best, None)),
        ]

    async def _of_change(
        self, name: str, pool: PoolConfig, old: str, anew: tuple[str, float | None] | None = None
    ) -> list[Recovered]:
        """The allocator as it was, after a refit, and after a full training, on one changed pool."""
        place = name.replace(" ", "-")
        found = {
            AS_IT_WAS: (old, None),
            REFITTED: self.trained(pool, f"{place}-refit", old),
            ANEW: anew or self.trained(pool, place),
        }
        cards = described(pool).cards
        rows = {label: await self._routed(path, cards) for label, (path, _) in found.items()}
        at = {card.name: price(card) for card in cards}
        largest = await measured(self.bench, self.seed, "largest", constant(cards[-1].name), prices=at)
        return [
            recovered(name, label, row, rows[ANEW], largest).model_copy(
                update={"cpu_seconds": found[label][1]}
            )
            for label, row in rows.items()
        ]

    async def _routed(self, path: str, cards: Sequence[ModelCard]) -> Row:
        self._engines.setdefault(path, _numpy(path))
        seed = Seed(
            self.seed.number,
            Pair(self.seed.pair.decomposer, path),
            self.seed.decomposer_price,
            self.seed.allocator_price,
            self.seed.planned,
        )
        return await routed(self.bench, seed, cards)

    def trained(self, pool: PoolConfig, place: str, start: str | None = None) -> tuple[str, float]:
        """An allocator for the pool and its CPU seconds: SFT on labels from solve rates, on the run's plans.

        With `start` it is a refit of that checkpoint.
        """
        config, directory = self.config.model_copy(update={"pool": pool}), self.out / place
        if start is not None:
            config = refitting(config, start)
        shutil.copytree(self.source / "collect", directory / "collect", dirs_exist_ok=True)
        run, started_s = TrainingRun(config, directory, self.console), time.process_time()
        path = run.sft("allocator")
        return str(path), round(time.process_time() - started_s, 1)


def refitting(config: TrainConfig, start: str) -> TrainConfig:
    """The settings of a refit from the checkpoint `start`."""
    sft = config.allocator.sft
    changed = sft.model_copy(update={"base": start, "fresh": False, "trainer": {**sft.trainer, **REFIT}})
    allocator = config.allocator.model_copy(update={"sft": changed})
    return config.model_copy(update={"allocator": allocator, "markets": REFIT_MARKETS})


def recovered(pool: str, allocator: str, row: Row, full: Row, largest: Row) -> Recovered:
    """One router beside the fully trained one, and beside the largest model on every step."""
    pair = compared(row, full)
    own, other, base = (resampled_means(each.cost_each_usd) for each in (row, full, largest))
    bounds = np.percentile((base - own) / (base - other), [2.5, 97.5])
    return Recovered(
        pool=pool,
        allocator=allocator,
        accuracy=row.accuracy,
        cost_usd=row.cost_usd,
        saving=1 - row.cost_usd / largest.cost_usd,
        points=100 * pair.accuracy_difference,
        points_ci95=tuple(100 * bound for bound in pair.accuracy_difference_ci95),
        share=(largest.cost_usd - row.cost_usd) / (largest.cost_usd - full.cost_usd),
        share_ci95=tuple(map(float, bounds)),
        largest_accuracy=largest.accuracy,
        largest_cost_usd=largest.cost_usd,
    )


def table_of(rows: Sequence[Recovered]) -> Table:
    """The rows for people."""
    table = Table(title="the same plans; points and share are against the allocator that was trained anew")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    for row in rows:
        low, high = row.points_ci95
        least, most = (100 * bound for bound in row.share_ci95)
        table.add_row(
            row.pool,
            row.allocator,
            f"{100 * row.accuracy:.1f} %",
            f"{1e6 * row.cost_usd:.2f}",
            f"{100 * row.saving:.1f} %",
            f"{row.points:+.1f} ({low:+.1f} to {high:+.1f})",
            f"{100 * row.share:.1f} % ({least:.1f} to {most:.1f})",
            "" if row.cpu_seconds is None else str(row.cpu_seconds),
        )
    return table


def _numpy(path: str) -> Engine:
    return make_engine(NumpyEngineConfig(kind="numpy", path=path, max_batch_size=512))
