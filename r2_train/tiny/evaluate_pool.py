"""Measures a pool of tiny models and its router on held-out tasks: accuracy, and the cost of the workers.

The learned decomposer writes the plans of every routed row. Costs are parameter-tokens relative to those of
the largest worker: on whole commands for `scan`, on every subtask of the same plans for `words`, because no
worker answers a whole word problem. Wall time is not measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r2_serve.lab.domains import Task, everyday, scan, words
from r2_serve.types import Plan
from r2_train.tiny.pool_execution import allocate, answer_whole, decompose, execute
from r2_train.tiny.tiny_data import DomainName, pool_cards
from r2_train.tiny.tiny_models import TinyModel

MANIFEST = "manifest.json"
MAX_ANSWER_TOKENS: dict[DomainName, int] = {"everyday": 16, "words": 8, "scan": 64}
SPLITS: dict[DomainName, tuple[str, ...]] = {
    "everyday": ("test",), "words": ("test",), "scan": ("length", "simple"),
}  # fmt: skip


@dataclass(frozen=True)
class PolicyRow:
    """The figures of one policy. The cost is relative to the reference."""

    policy: str
    accuracy: float
    worker_cost: float


@dataclass(frozen=True)
class RouterReport:
    """The figures of a router on one split."""

    split: str
    num_tasks: int
    exact_plan_rate: float
    """Share of plans that are one of the task's own, in any style."""
    valid_plan_rate: float
    decomposer_cost: float
    allocator_cost: float
    rows: tuple[PolicyRow, ...]

    @property
    def router_cost(self) -> float:
        return self.decomposer_cost + self.allocator_cost


def held_out_tasks(domain: DomainName, split: str, num_tasks: int, seed: int = 0) -> list[Task]:
    """Test tasks. `scan` gives every n-th task of the split, so that about `num_tasks` cover it evenly."""
    if domain == "everyday":
        return everyday.tasks("test", num_tasks, seed)
    if domain == "words":
        return words.tasks("test", num_tasks, seed)
    everything = scan.tasks("length" if split == "length" else "simple", seed)
    return list(everything[:: max(1, len(everything) // num_tasks)])


def load_pool(domain: DomainName, model_dir: Path) -> list[TinyModel]:
    """The workers of a domain, cheapest first, as the manifest lists them."""
    manifest = json.loads((model_dir / MANIFEST).read_text())
    return [TinyModel.load(model_dir / name) for name in manifest["pools"][domain]]


def evaluate_router(domain: DomainName, model_dir: Path, num_tasks: int, split: str) -> RouterReport:
    """Routes held-out tasks with the checkpoints of `model_dir` and prints the figures."""
    decomposer = TinyModel.load(model_dir / f"{domain}-decomposer")
    allocator = TinyModel.load(model_dir / f"{domain}-allocator")
    tasks = held_out_tasks(domain, split, num_tasks)
    report = _route(domain, split, tasks, decomposer, allocator, load_pool(domain, model_dir))
    _print_report(domain, report)
    return report


def exact_plan_rate(plans: Sequence[Plan | None], tasks: Sequence[Task]) -> float:
    """Share of plans that are one of their task's own, in any style."""
    return sum(plan in task.plans for plan, task in zip(plans, tasks, strict=True)) / len(tasks)


def report_json(report: RouterReport) -> object:
    """The report for the manifest, with rounded numbers."""
    figures = {**asdict(report), "router_cost": report.router_cost}
    return json.loads(json.dumps(figures), parse_float=lambda text: round(float(text), 4))


def _route(
    domain: DomainName, split: str, tasks: Sequence[Task], decomposer: TinyModel, allocator: TinyModel,
    pool: Sequence[TinyModel],
) -> RouterReport:  # fmt: skip
    queries, golds, max_tokens = [t.query for t in tasks], [t.gold for t in tasks], MAX_ANSWER_TOKENS[domain]
    workers = {worker.name: worker for worker in pool}
    found, decomposer_cost = decompose(decomposer, queries)
    plans = [plan or Plan.single(query) for plan, query in zip(found, queries, strict=True)]
    learned, allocator_cost = allocate(allocator, queries, plans, pool_cards(list(workers)))
    runs = {"learned plan, learned allocation": execute(plans, learned, workers, max_tokens)}
    for name in workers:
        uniform = [(name,) * len(plan.subtasks) for plan in plans]
        runs[f"learned plan, all {name}"] = execute(plans, uniform, workers, max_tokens)
    for name, worker in workers.items():
        runs[f"whole query to {name}"] = answer_whole(worker, queries, max_tokens)
    kind = "whole query to" if domain == "scan" else "learned plan, all"
    reference = runs[f"{kind} {pool[-1].name}"].cost
    return RouterReport(
        split=split,
        num_tasks=len(tasks),
        exact_plan_rate=exact_plan_rate(found, tasks),
        valid_plan_rate=sum(plan is not None for plan in found) / len(tasks),
        decomposer_cost=decomposer_cost / reference,
        allocator_cost=allocator_cost / reference,
        rows=tuple(
            PolicyRow(policy, run.accuracy(golds), run.cost / reference) for policy, run in runs.items()
        ),
    )


def _print_report(domain: DomainName, report: RouterReport) -> None:
    table = Table(title=f"{domain} / {report.split}: {report.num_tasks} held-out tasks")
    for heading in ("policy", "accuracy", "worker cost"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in report.rows:
        table.add_row(row.policy, f"{row.accuracy:.3f}", f"{row.worker_cost:.3f}")
    console = Console(markup=False, width=100)
    console.print(table)
    console.print(
        f"exact plans {report.exact_plan_rate:.3f}, valid plans {report.valid_plan_rate:.3f}; "
        f"router cost {report.router_cost:.3f} "
        f"(decomposer {report.decomposer_cost:.3f}, allocator {report.allocator_cost:.3f})"
    )
