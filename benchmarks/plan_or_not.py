"""`plan: auto` on SCAN commands mixed with one-step commands, on the embedded pool.

    python -m benchmarks.plan_or_not --out runs/plan-or-not

The tasks are commands of the length split, of the simple split, and the 34 verb phrases ("run left"), which
are one step each. `r2-serve eval` asks all of them both ways: with a plan, and as they are to the default
model. `r2-train fit` fits on the development half, and the router with `plan: auto` and that fit answers the
test half. The table has one row for each class of commands: the accuracy of each way, and the cost in percent
of the direct call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from r2_serve.engines import EMBEDDED_PREFIX
from r2_serve.grading.rows import Task
from r2_serve.lab.domains import scan
from r2_serve.lab.evaluation.benchmarks import load_tasks
from r2_serve.lab.evaluation.rows import EvalRow, merged, read_rows
from r2_serve.lab.evaluation.session import EvalRequest, run_session
from r2_serve.router.fitted_plan import write_fitted_plan
from r2_train.fit import FitRequest, fit_plan_file

VIRTUAL, DIRECT = "r2-scan", "single:scan-168k"
EMBEDDED = Path(__file__).parent.parent / "r2_serve" / EMBEDDED_PREFIX.rstrip(":") / "serve_config.yaml"
CLASSES = ("one step", "2 to 8 actions", "9 to 22 actions", "more than 22 actions")


@dataclass(frozen=True)
class ClassRow:
    """One class of commands in the test half. Accuracies are shares; costs are relative to direct calls."""

    name: str
    num_tasks: int
    direct_accuracy: float
    always_accuracy: float
    auto_accuracy: float
    always_cost: float
    auto_cost: float
    planned: float
    """The share of commands that `plan: auto` planned."""


def class_of(command: str) -> str:
    num_actions = len(scan.interpret(command).split())
    if command in scan.phrases():
        return CLASSES[0]
    return CLASSES[1] if num_actions <= 8 else CLASSES[2] if num_actions <= 22 else CLASSES[3]


def mixed_commands(num_each: int) -> list[str]:
    """One-step commands, and evenly spread ones of the length and the simple split, `num_each` of each."""
    found = list(scan.phrases())
    for split in (scan.tasks("length"), scan.tasks("simple")):
        found += [task.query for task in split[:: max(1, len(split) // num_each)][:num_each]]
    return list(dict.fromkeys(found))


def write_data(path: Path, num_each: int) -> None:
    lines = (f"IN: {command} OUT: {scan.interpret(command)}" for command in mixed_commands(num_each))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_config(path: Path, **virtual: object) -> None:
    """The embedded config, whose SCAN router has other settings."""
    config = yaml.safe_load(EMBEDDED.read_text())
    (router,) = (app for app in config["applications"] if app["name"] == "r2")
    (user_config,) = (d["user_config"] for d in router["deployments"] if d["name"] == "Router")
    user_config["virtual_models"][VIRTUAL].update(virtual)
    path.write_text(yaml.safe_dump(config))


def evaluate(
    out: Path, data: Path, config: Path, split: str, policies: Sequence[str]
) -> dict[tuple[str, str], EvalRow]:
    """The rows of a run by policy and task."""
    request = EvalRequest.model_validate(
        {
            "benchmark": "scan",
            "policies": tuple(policies),
            "data": str(data),
            "out": out,
            "split": split,
            "config": config,
            "virtual_model": VIRTUAL,
            "set_aside_other_run": True,
        }
    )
    asyncio.run(run_session(request, Console(stderr=True, quiet=True)))
    return merged(read_rows(out))


def measure(out: Path, num_each: int) -> list[ClassRow]:
    """Everything, in `out`: both ways, the fit, `plan: auto`."""
    data, always, auto = out / "commands.txt", out / "always.yaml", out / "auto.yaml"
    write_data(data, num_each)
    write_config(always, plan="always")
    evaluate(out / "fit", data, always, "development", ("r2", DIRECT))
    file = fit_plan_file(FitRequest(book=out / "fit", ways=("r2", DIRECT)))
    write_fitted_plan(out / "plan.json", file)
    write_config(auto, plan="auto", plan_file=str((out / "plan.json").absolute()))
    both = evaluate(out / "both", data, always, "test", ("r2", DIRECT))
    chosen = evaluate(out / "auto", data, auto, "test", ("r2",))
    tasks = {task.id: task for task in load_tasks("scan", data)}
    return _rows(tasks, both, chosen)


def _rows(
    tasks: dict[str, Task], both: dict[tuple[str, str], EvalRow], chosen: dict[tuple[str, str], EvalRow]
) -> list[ClassRow]:
    ids = [task for policy, task in chosen if policy == "r2"]
    sizes = Counter(class_of(tasks[task].query) for task in ids)
    groups = {name: [task for task in ids if class_of(tasks[task].query) == name] for name in CLASSES}
    return [
        ClassRow(
            name=name,
            num_tasks=sizes[name],
            direct_accuracy=_accuracy(both[DIRECT, task] for task in group),
            always_accuracy=_accuracy(both["r2", task] for task in group),
            auto_accuracy=_accuracy(chosen["r2", task] for task in group),
            always_cost=_usd(both["r2", t] for t in group) / _usd(both[DIRECT, t] for t in group),
            auto_cost=_usd(chosen["r2", t] for t in group) / _usd(both[DIRECT, t] for t in group),
            planned=fmean(_is_planned(chosen["r2", task]) for task in group),
        )
        for name, group in groups.items()
        if group
    ]


def _accuracy(rows: Iterable[EvalRow]) -> float:
    return fmean(row.status == "correct" for row in rows)


def _usd(rows: Iterable[EvalRow]) -> float:
    return float(sum(row.cost_usd for row in rows))


def _is_planned(row: EvalRow) -> bool:
    return any(call.stage == "decompose" for call in row.outcome.calls)


def show(rows: Sequence[ClassRow]) -> None:
    table = Table("commands", "n", "direct", "always", "auto", "cost of always", "cost of auto", "planned")
    for row in rows:
        shares = (row.direct_accuracy, row.always_accuracy, row.auto_accuracy, row.always_cost, row.auto_cost)
        table.add_row(row.name, str(row.num_tasks), *(f"{100 * s:.1f} %" for s in (*shares, row.planned)))
    Console(width=120).print(table)


def main(
    out: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs/plan-or-not"),
    num_each: Annotated[int, typer.Option(min=40, help="Commands of each split.")] = 400,
) -> None:
    """Fit `plan: auto` on SCAN mixed with one-step commands, and show what it does."""
    show(measure(out, num_each))


if __name__ == "__main__":
    typer.run(main)
