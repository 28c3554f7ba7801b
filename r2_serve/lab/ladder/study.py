"""The study: every policy on the plans of every trained pair, and the figures of `summary.json`."""

from __future__ import annotations

import datetime
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from r2_serve import EMBEDDED
from r2_serve.config import NumpyEngineConfig
from r2_serve.engines import make_engine
from r2_serve.grading.grade_text import listed_results
from r2_serve.lab.domains import Task, everyday
from r2_serve.lab.ladder.policies import (
    CODEC,
    PlanRun,
    Policy,
    allocated,
    chain_answer,
    oracle,
    price,
    run_plan,
)
from r2_serve.lab.ladder.replies import Replies
from r2_serve.lab.ladder.router import Pair, Planned, allocations, plans
from r2_serve.lab.ladder.tuning import Candidate, cheapest_within, lookups, step_table, tuned
from r2_serve.lab.runs import machine
from r2_serve.lab.statistics import Floats, Paired, paired
from r2_serve.serve_config import ServeConfig
from r2_serve.types import Engine, Message, ModelCard, Plan

VIRTUAL_MODEL = "r2-everyday"
DEVELOPMENT_SEED = 1
"""Development problems are training problems of a seed that no model was trained with."""
TEST_SEED = 0
WITHIN = 0.01
"""A baseline is a rival if its accuracy is at most this far below the router's, or below the best baseline's
where the router is better than all."""
BATCH_SIZE = 512
COT = "everyday-cot"
"""A model that reads the whole problem and writes every step, then the answer."""
MOST_COT_TOKENS = 320
GUESTS = ("words-22k",)
"""Workers that join the pool in a table of changed pools."""


@dataclass(frozen=True)
class Row:
    """One policy with the plans of one pair, or the means over several pairs. Arrays have a value for each
    problem."""

    policy: str
    right: Floats
    """1 for a right answer; 0 for a wrong one, or none."""
    worker_usd: Floats
    router_usd: Floats
    """Cost of the calls of decomposer and allocator."""
    shares: Mapping[str, float]
    """Share of the calls that each worker got."""
    is_rival: bool = True

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def cost_each_usd(self) -> Floats:
        return self.worker_usd + self.router_usd

    @property
    def cost_usd(self) -> float:
        """Mean cost of a problem."""
        return float(self.cost_each_usd.mean())

    def only(self, chosen: NDArray[np.bool_]) -> Row:
        """The row of the chosen problems."""
        return replace(
            self,
            right=self.right[chosen],
            worker_usd=self.worker_usd[chosen],
            router_usd=self.router_usd[chosen],
        )

    def figures(self) -> dict[str, object]:
        """The row of `summary.json`."""
        return {
            "policy": self.policy,
            "accuracy": self.accuracy,
            "cost_usd": self.cost_usd,
            "worker_usd": float(self.worker_usd.mean()),
            "router_usd": float(self.router_usd.mean()),
            "shares": dict(self.shares),
            "is_rival": self.is_rival,
        }


@dataclass(frozen=True)
class Bench:
    """The problems, the pool and the replies of one study."""

    tasks: Sequence[Task]
    cards: Sequence[ModelCard]
    replies: Replies
    candidates: Sequence[Candidate]
    lookup: Candidate

    @property
    def prices(self) -> dict[str, float]:
        return {card.name: price(card) for card in self.cards}

    @property
    def golds(self) -> list[tuple[str, ...]]:
        return [listed_results(task.gold) for task in self.tasks]


@dataclass(frozen=True)
class Seed:
    """A trained pair: names of its two checkpoints, their prices, and its plans of the test problems."""

    number: int
    pair: Pair
    decomposer_price: float
    allocator_price: float
    planned: Sequence[Planned] = field(default=(), repr=False)

    @property
    def plan_usd(self) -> Floats:
        """What each plan cost."""
        return np.array([item.cost_usd for item in self.planned])


async def bench_of(served: ServeConfig, folder: Path, num_test: int, num_development: int) -> Bench:
    """Asks every worker for every development step, and tunes the baselines."""
    pool = served.routing.virtual_models[VIRTUAL_MODEL].pool
    cards = [served.router.model(name) for name in pool]
    workers = {name: _numpy(f"embedded:{name}") for name in [*pool, *GUESTS, COT]}
    replies = Replies({**workers, **_pair_engines(folder)}, longer={COT: MOST_COT_TOKENS})
    prices = {card.name: price(card) for card in cards}
    development = everyday.tasks("train", num_development, DEVELOPMENT_SEED)
    table = await step_table(development, prices, replies)
    most = max(table.figures(table.right[:, i], table.cost_usd[:, i])[0] for i in range(len(cards)))
    return Bench(
        tasks=everyday.tasks("test", num_test, TEST_SEED),
        cards=cards,
        replies=replies,
        candidates=tuned(table, most),
        lookup=cheapest_within(list(lookups(table)), 0.005, most),
    )


def seeds_of(served: ServeConfig, folder: Path, stage: str = "") -> list[Seed]:
    """The pairs in `folder`: `seed-0/decomposer`, `seed-0/allocator`, ... `stage` begins the names of others
    (`sft-`)."""
    virtual = served.routing.virtual_models[VIRTUAL_MODEL]
    planner, picker = virtual.decomposer.model, virtual.allocator.model
    prices = price(served.router.model(planner)), price(served.router.model(picker))
    found = []
    for place in sorted(folder.glob("seed-*")):
        pair = Pair(f"{place.name}/{stage}decomposer", f"{place.name}/{stage}allocator")
        if (folder / pair.allocator / "config.json").exists():
            found.append(Seed(int(place.name.removeprefix("seed-")), pair, *prices))
    return found


def _pair_engines(folder: Path) -> dict[str, Engine]:
    found = [path.parent for path in sorted(folder.glob("seed-*/*/config.json"))]
    return {f"{path.parent.name}/{path.name}": _numpy(str(path)) for path in found}


def _numpy(path: str) -> Engine:
    return make_engine(NumpyEngineConfig(kind="numpy", path=path, max_batch_size=BATCH_SIZE))


async def planned(bench: Bench, seed: Seed) -> Seed:
    """The seed with its plans of the test problems."""
    found = await plans(bench.tasks, seed.pair, seed.decomposer_price, bench.replies)
    return Seed(seed.number, seed.pair, seed.decomposer_price, seed.allocator_price, found)


async def routed(bench: Bench, seed: Seed, cards: Sequence[ModelCard], name: str = "r2") -> Row:
    """The router, choosing among `cards` at their prices."""
    chosen = await allocations(seed.planned, seed.pair, seed.allocator_price, cards, bench.replies)
    policy, at = allocated([models for models, _ in chosen]), {card.name: price(card) for card in cards}
    return await measured(bench, seed, name, policy, prices=at, own_usd=[cost for _, cost in chosen])


async def measured(
    bench: Bench, seed: Seed, name: str, policy: Policy, *,
    prices: Mapping[str, float] | None = None, own_usd: Sequence[float] = (), is_rival: bool = True,
) -> Row:  # fmt: skip
    """The figures of a policy on the plans of a seed. A problem without a plan counts as wrong.

    `own_usd` is what the policy's own calls cost for each problem.
    """
    at = prices or bench.prices

    def run(i: int, plan: Plan | None) -> PlanRun | None:
        return None if plan is None else run_plan(i, plan, policy, bench.replies)

    work = [lambda i=i, plan=item.plan: run(i, plan) for i, item in enumerate(seed.planned)]
    runs = await bench.replies.settled(work)
    right = [
        run is not None and listed_results(run.answer) == gold
        for run, gold in zip(runs, bench.golds, strict=True)
    ]
    calls = Counter(model for run in runs if run is not None for model, _ in run.calls)
    return Row(
        policy=name,
        right=np.array(right, dtype=float),
        worker_usd=np.array([run.cost_usd(at) if run is not None else 0.0 for run in runs]),
        router_usd=seed.plan_usd + (np.array(own_usd) if own_usd else 0.0),
        shares={card.name: calls[card.name] / max(1, calls.total()) for card in bench.cards},
        is_rival=is_rival,
    )


async def single(bench: Bench, name: str, usd_per_mtok: float) -> Row:
    """A model that gets the whole problem in one call. What it cannot read costs nothing.

    `COT` writes every step before the answer.
    """
    kind, read = ("cot", chain_answer) if name == COT else ("single", CODEC.parse_answer)
    prompts = [CODEC.render_query([Message(role="user", content=task.query)])[0].text for task in bench.tasks]
    await bench.replies.ask((name, prompt, ()) for prompt in prompts)
    replies = [bench.replies.of(name, prompt) for prompt in prompts]
    right = [
        listed_results(read(reply.text)) == gold for reply, gold in zip(replies, bench.golds, strict=True)
    ]
    return Row(
        policy=f"{kind}:{name}",
        right=np.array(right, dtype=float),
        worker_usd=np.array([usd_per_mtok * reply.tokens / 1e6 for reply in replies]),
        router_usd=np.zeros(len(prompts)),
        shares={card.name: float(card.name == name) for card in bench.cards},
    )


def cot_price() -> float:
    """The number of its parameters in USD per 10^12 tokens, as for every embedded model."""
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    return float(manifest["models"][COT]["params"]) / 1e6


async def rows_of(bench: Bench, seed: Seed) -> list[Row]:
    """The router, every tuned baseline, `random` with the router's shares, `lookup` and `oracle`."""
    first = await routed(bench, seed, bench.cards)
    rng = random.Random(f"random/{seed.number}")
    names, shares = list(first.shares), list(first.shares.values())
    drawn = [
        rng.choices(names, shares, k=len(item.plan.subtasks) if item.plan else 0) for item in seed.planned
    ]
    rows = [first, *[await single(bench, card.name, price(card)) for card in bench.cards]]
    rows.append(await single(bench, COT, cot_price()))
    rows.append(await measured(bench, seed, "random", allocated(drawn)))
    rows += [await measured(bench, seed, each.name, each.policy) for each in bench.candidates]
    told = await measured(bench, seed, "lookup", bench.lookup.policy, is_rival=False)
    known = await measured(bench, seed, "oracle", oracle(bench.cards), is_rival=False)
    return [*rows, told, known]


def means(of_seeds: Iterable[Sequence[Row]]) -> list[Row]:
    """The means over seeds of each policy."""
    return [
        replace(
            rows[0],
            right=np.mean([row.right for row in rows], 0),
            worker_usd=np.mean([row.worker_usd for row in rows], 0),
            router_usd=np.mean([row.router_usd for row in rows], 0),
            shares={name: fmean(row.shares[name] for row in rows) for name in rows[0].shares},
        )
        for rows in zip(*of_seeds, strict=True)
    ]


def cheapest_rival(rows: Sequence[Row]) -> Row | None:
    """The cheapest baseline that is as accurate as the router, less `WITHIN`; None if there is no baseline.

    Where the router is more accurate than all of them, it is the cheapest within that of the best one.
    """
    rivals = [row for row in rows[1:] if row.is_rival]
    most = max((row.accuracy for row in rivals), default=0.0)
    least = min(rows[0].accuracy, most) - WITHIN
    able = [row for row in rivals if row.accuracy >= least]
    return min(able, key=lambda row: row.cost_usd, default=None)


def strongest(rows: Sequence[Row]) -> Row:
    """The most accurate single worker on every step of the same plans."""
    return max((row for row in rows if row.policy.startswith("all:")), key=lambda row: row.accuracy)


def summary(bench: Bench, rows: Sequence[Row], of_seeds: Sequence[Sequence[Row]]) -> dict[str, object]:
    """The figures of `summary.json`; the first are those that the table is judged by."""
    router, rival, best = rows[0], cheapest_rival(rows), strongest(rows)
    return {
        "tasks": len(bench.tasks),
        "accuracy": router.accuracy,
        "strongest_accuracy": best.accuracy,
        "cheapest_rival": rival and rival.policy,
        "cost_over_cheapest_rival": rival and router.cost_usd / rival.cost_usd,
        "workers_over_10_percent": sum(share >= 0.1 for share in router.shares.values()),
        "worker_cost_over_cheapest_rival": rival
        and float(router.worker_usd.mean() / rival.worker_usd.mean()),
        "seeds": len(of_seeds),
        "accuracy_of_seeds": [seed_rows[0].accuracy for seed_rows in of_seeds],
        "against_strongest": compared(router, best).model_dump(mode="json"),
        "against_cheapest_rival": rival and compared(router, rival).model_dump(mode="json"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "rows": [row.figures() for row in rows],
    }


def compared(row: Row, other: Row) -> Paired:
    """Problem by problem, with intervals."""
    return paired(row.right, other.right, row.cost_each_usd, other.cost_each_usd)
