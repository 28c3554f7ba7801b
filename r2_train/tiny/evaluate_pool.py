"""Measures a pool of tiny models and its router on held-out tasks: accuracy against what the workers cost.

The plan is the learned decomposer's in every routed row. Costs are parameter-tokens relative to a reference: for
`scan` the largest worker on the same whole commands, for `words` the largest worker on every subtask of the same plans
(no worker answers a whole word problem, so that would be no reference). Wall time is not measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r2_serve.lab.domains import Task, scan, words
from r2_serve.types import Plan
from r2_train.tiny.pool_execution import Models, Outcome, allocate, answer_whole, decompose, execute
from r2_train.tiny.tiny_data import DomainName, pool_cards
from r2_train.tiny.tiny_models import TinyModel

MANIFEST = "manifest.json"
MAX_ANSWER_TOKENS: dict[DomainName, int] = {"words": 8, "scan": 64}
SPLITS: dict[DomainName, tuple[str, ...]] = {"words": ("test",), "scan": ("length", "simple")}


@dataclass(frozen=True)
class Row:
    """One policy. Costs are relative to the reference."""

    policy: str
    accuracy: float
    worker_cost: float


@dataclass(frozen=True)
class RouterReport:
    """What `evaluate_router` measured on one split."""

    split: str
    num_tasks: int
    exact_plan_rate: float
    """Share of the plans that are one of the task's, in whatever style."""
    valid_plan_rate: float
    decomposer_cost: float
    allocator_cost: float
    rows: tuple[Row, ...]

    @property
    def router_cost(self) -> float:
        return self.decomposer_cost + self.allocator_cost


def held_out_tasks(domain: DomainName, split: str, num_tasks: int, seed: int = 0) -> list[Task]:
    """Test tasks; for `scan` every n-th of the split, so that `num_tasks` (or a few more) cover it evenly."""
    if domain == "words":
        return words.tasks("test", num_tasks, seed)
    everything = scan.tasks("length" if split == "length" else "simple", seed)
    return list(everything[:: max(1, len(everything) // num_tasks)])


def load_pool(domain: DomainName, model_dir: Path) -> list[TinyModel]:
    """The workers of a domain, cheapest first, as the manifest lists them."""
    manifest = json.loads((model_dir / MANIFEST).read_text())
    return [TinyModel.load(model_dir / name) for name in manifest["pools"][domain]]


def evaluate_router(
    domain: DomainName, model_dir: Path, num_tasks: int, split: str | None = None
) -> RouterReport:
    """Decomposes, allocates and executes held-out tasks with the checkpoints of `model_dir`, and prints the table."""
    split = split or SPLITS[domain][0]
    tasks = held_out_tasks(domain, split, num_tasks)
    decomposer, allocator = (
        TinyModel.load(model_dir / f"{domain}-{module}") for module in ("decomposer", "allocator")
    )
    report = route(domain, split, tasks, decomposer, allocator, load_pool(domain, model_dir))
    print_report(domain, report)
    return report


def route(
    domain: DomainName,
    split: str,
    tasks: Sequence[Task],
    decomposer: TinyModel,
    allocator: TinyModel,
    workers: Sequence[TinyModel],
) -> RouterReport:
    """The measurements of `evaluate_router`, on given tasks and models."""
    queries, golds = [task.query for task in tasks], [task.gold for task in tasks]
    by_name = {worker.name: worker for worker in workers}
    pool = pool_cards(list(by_name))
    found, decomposer_cost = decompose(decomposer, queries)
    plans = [plan or Plan.single(query) for plan, query in zip(found, queries, strict=True)]
    learned, allocator_cost = allocate(allocator, queries, plans, pool)
    outcomes = {
        "learned plan, learned allocation": execute(plans, learned, by_name, MAX_ANSWER_TOKENS[domain])
    }
    for name in by_name:
        outcomes[f"learned plan, all {name}"] = execute(
            plans, _uniform(plans, name), by_name, MAX_ANSWER_TOKENS[domain]
        )
    for name, worker in by_name.items():
        outcomes[f"whole query to {name}"] = answer_whole(worker, queries, MAX_ANSWER_TOKENS[domain])
    largest = workers[-1].name
    reference = outcomes[
        f"whole query to {largest}" if domain == "scan" else f"learned plan, all {largest}"
    ].cost
    return RouterReport(
        split=split,
        num_tasks=len(tasks),
        exact_plan_rate=sum(plan in task.plans for plan, task in zip(found, tasks, strict=True)) / len(tasks),
        valid_plan_rate=sum(plan is not None for plan in found) / len(tasks),
        decomposer_cost=decomposer_cost / reference,
        allocator_cost=allocator_cost / reference,
        rows=tuple(_row(policy, outcome, golds, reference) for policy, outcome in outcomes.items()),
    )


def exact_plan_rate(decomposer: TinyModel, tasks: Sequence[Task]) -> float:
    """Share of greedy plans that are one of their task's, in whatever style."""
    plans, _ = decompose(decomposer, [task.query for task in tasks])
    return sum(plan in task.plans for plan, task in zip(plans, tasks, strict=True)) / len(tasks)


def print_report(domain: DomainName, report: RouterReport) -> None:
    table = Table(title=f"{domain} / {report.split}: {report.num_tasks} held-out tasks")
    for heading in ("policy", "accuracy", "worker cost"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in report.rows:
        table.add_row(row.policy, f"{row.accuracy:.3f}", f"{row.worker_cost:.3f}")
    console = Console(markup=False, width=100)
    console.print(table)
    console.print(
        f"exact plans {report.exact_plan_rate:.3f}, valid plans {report.valid_plan_rate:.3f}; router cost {report.router_cost:.3f} "
        f"(decomposer {report.decomposer_cost:.3f}, allocator {report.allocator_cost:.3f})"
    )


def report_json(report: RouterReport) -> dict[str, object]:
    """The report for the manifest, rounded."""
    rows = [
        {"policy": row.policy, "accuracy": round(row.accuracy, 4), "worker_cost": round(row.worker_cost, 4)}
        for row in report.rows
    ]
    numbers = {key: round(value, 4) for key, value in asdict(report).items() if isinstance(value, float)}
    return {
        "split": report.split,
        "num_tasks": report.num_tasks,
        **numbers,
        "router_cost": round(report.router_cost, 4),
        "rows": rows,
    }


def _uniform(plans: Sequence[Plan], name: str) -> list[Models]:
    return [(name,) * len(plan.subtasks) for plan in plans]


def _row(policy: str, outcome: Outcome, golds: Sequence[str], reference: int) -> Row:
    return Row(policy, outcome.accuracy(golds), outcome.cost / reference)
