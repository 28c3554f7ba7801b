"""`make demo`: routes held-out tasks through the endpoint over HTTP, and shows honestly what routing buys.

The demo is an evaluation, kept in memory, of the generated domains on the shipped tiny models. Its policies
are the routed query, each pool model alone on the whole task, and pool models on the very plans that were
routed. Cost is tokens times price, and price is proportional to parameters: it is not wall time.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from r2_serve.client import new_client
from r2_serve.config import RouterConfig
from r2_serve.errors import counted
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task, task_of
from r2_serve.lab.domains import everyday, words
from r2_serve.lab.evaluation.asker import HttpAsker
from r2_serve.lab.evaluation.benchmarks import load_tasks
from r2_serve.lab.evaluation.desk import Desk, EvalPolicy, Solved, user
from r2_serve.lab.evaluation.manifest import pool_models, setting_of
from r2_serve.lab.evaluation.policies import Single
from r2_serve.lab.evaluation.report.cells import failure_notes, percent
from r2_serve.lab.evaluation.report.policy import PolicyReport, policy_report
from r2_serve.lab.evaluation.report.table import accuracy_table, models_table, usage_table
from r2_serve.lab.evaluation.runner import Examiner
from r2_serve.lab.evaluation.session import rows_of
from r2_serve.lab.reports.terminal import dag_view, trace_view, usd
from r2_serve.lab.runs import machine
from r2_serve.lab.statistics import wilson
from r2_serve.serve_config import ServeConfig
from r2_serve.types import Sampling, Trace

AT_ONCE = 32
SEED = 20_261_124


@dataclass(frozen=True)
class Domain:
    """One of the generated domains."""

    title: str
    virtual_model: str
    tasks: Callable[[int], Sequence[Task]]
    reference: Literal["alone", "same plans"]
    """Costs are divided by those of the largest model: alone on the whole task, or on the routed plans."""
    shown: Sequence[str] = ()
    """Pool models that the routed queries are compared with; none names all of them."""


def _generated(domain: Literal["everyday", "words"], num_tasks: int) -> Sequence[Task]:
    tasks = (words if domain == "words" else everyday).tasks("test", num_tasks, SEED)
    return [task_of(domain, {"id": task.id, "query": task.query, "gold": task.gold}) for task in tasks]


def _scan(num_tasks: int) -> Sequence[Task]:
    """Commands evenly spread over the split."""
    tasks = load_tasks("scan", "length")
    return tasks[:: max(1, len(tasks) // num_tasks)][:num_tasks]


DOMAINS = {
    "everyday": Domain(
        "everyday problems that need different skills (held out)",
        "r2-everyday",
        partial(_generated, "everyday"),
        "same plans",
        shown=("arithmetic-33k", "text-33k", "general-170k"),
    ),
    "words": Domain("arithmetic word problems (held out)", "r2", partial(_generated, "words"), "same plans"),
    "scan": Domain("SCAN, length split (held out: longer than any in training)", "r2-scan", _scan, "alone"),
}


@dataclass(frozen=True)
class Routed:
    """The virtual model as clients ask it; the traces are kept, so that their plans can be run again."""

    name: str = "r2, routed"
    traces: dict[str, Trace] = field(default_factory=dict)
    """Traces by task id."""

    async def answer(self, task: Task, desk: Desk) -> Solved:
        asked = await desk.ask(desk.setting.virtual_model, user(task.query), sampling=Sampling())
        self.traces[task.id] = asked.trace
        return Solved.of(asked)


@dataclass(frozen=True)
class OnSamePlans:
    """One model on every subtask of the routed plans; on the whole task if there is no plan."""

    name: str
    model: str
    traces: dict[str, Trace]

    async def answer(self, task: Task, desk: Desk) -> Solved:
        trace = self.traces.get(task.id)
        if trace is None or trace.plan is None or trace.plan_fallback:
            return await Single(self.name, self.model).answer(task, desk)
        virtual_model, policy, sampling = desk.setting.virtual_model, f"all:{self.model}", Sampling()
        query = user(task.query)
        return Solved.of(
            await desk.ask(virtual_model, query, plan=trace.plan, policy=policy, sampling=sampling)
        )


async def run_demo(
    base_url: str, config: ServeConfig, names: Sequence[str], num_queries: int, console: Console
) -> dict[str, object]:
    """Measure every domain of `names`, print its tables and one query's DAG; the figures as JSON."""
    today = datetime.datetime.now(datetime.UTC).date()
    summary: dict[str, object] = {"date": today.isoformat(), "machine": machine()}
    async with new_client(base_url) as client, Grader() as grader:
        for name in names:
            domain = DOMAINS[name]
            console.rule(Text(domain.title, style="bold"))
            setting = setting_of(config.router, config.routing, domain.virtual_model)
            examiner = Examiner(HttpAsker(client), grader, setting)
            summary[name] = await measure(domain, examiner, config.router, num_queries, console)
    return summary


def write_summary(summary: dict[str, object], directory: Path) -> Path:
    """Write `directory`/summary.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "summary.json"
    write_whole(path, json.dumps(summary, indent=2))
    return path


async def measure(
    domain: Domain, examiner: Examiner, router: RouterConfig, num_tasks: int, console: Console
) -> dict[str, object]:
    """Run every policy over the tasks of one domain, print the tables; the figures as JSON."""
    tasks, routed = domain.tasks(num_tasks), Routed()
    pool = [name for name in examiner.setting.pool if name in (domain.shown or examiner.setting.pool)]
    solved: set[str] = set()

    async def report(policy: EvalPolicy) -> PolicyReport:
        rows = await rows_of(policy, tasks, examiner, console, num_at_once=AT_ONCE)
        if policy is routed:
            solved.update(row.task_id for row in rows if row.status == "correct")
        return policy_report(policy.name, [rows], len(tasks), pool_models(router))

    first = await report(routed)
    compared = pool if domain.reference == "same plans" else pool[-1:]
    on_plans = [await report(OnSamePlans(f"{name}, same plans", name, routed.traces)) for name in compared]
    alone = [await report(Single(f"{name}, alone", name)) for name in pool]
    reference = (alone if domain.reference == "alone" else on_plans)[-1]
    _print_tables([first, *reversed(on_plans), *reversed(alone)], reference, console)
    _print_example([trace for task_id, trace in routed.traces.items() if task_id in solved], console)
    _print_verdict(first, reference, on_plans[-1], console)
    return _summary([first, *on_plans, *alone], reference, list(routed.traces.values()))


def _print_tables(reports: Sequence[PolicyReport], reference: PolicyReport, console: Console) -> None:
    caption = (
        f"{counted(reports[0].num_tasks, 'task')}, {AT_ONCE} at once; "
        f"% of ref, workers: in % of “{reference.policy}”;\n"
        "tokens x price, price proportional to parameters, not wall time"
    )
    styles = ["bold", *[""] * (len(reports) - 1)]
    console.print(accuracy_table(reports, reference, styles=styles, caption=caption))
    console.print(usage_table(reports))
    console.print(models_table(reports[:1]))
    for note in failure_notes(reports):
        console.print(note, style="dim", markup=False)


def _print_example(traces: Sequence[Trace], console: Console) -> None:
    """Print the plan with the most models and steps: a picture of what routing does."""
    for trace in sorted(traces, key=lambda t: (len({s.model for s in t.results}), len(t.results)))[-1:]:
        console.print(Text("\nOne query: ", style="bold") + Text(trace.query, style="not bold"))
        if trace.plan is not None:
            console.print(dag_view(trace.plan))
        console.print(trace_view(trace))
        console.print(Text("Answer: ", style="bold") + Text(f"{trace.answer}\n", style="not bold"))


def _print_verdict(
    routed: PolicyReport, reference: PolicyReport, same_plans: PolicyReport, console: Console
) -> None:
    worker = _ratio(routed.worker_cost_usd, reference.worker_cost_usd)
    total = _ratio(routed.total_cost_usd, reference.worker_cost_usd)
    behind = _ratio(routed.total_cost_usd, same_plans.worker_cost_usd + routed.router_cost_usd)
    console.print(
        f"[bold]{percent(routed.accuracy)}[/] correct (reference {percent(reference.accuracy)}) at "
        f"[bold]{percent(worker)}[/] of the reference's cost for the workers, [bold]{percent(total)}[/] with "
        f"the router's own calls ({percent(behind)} of the largest model behind the same router).",
        markup=True,
    )


def _summary(
    reports: Sequence[PolicyReport], reference: PolicyReport, traces: Sequence[Trace]
) -> dict[str, object]:
    routed = reports[0]
    return {
        "queries": routed.num_tasks,
        "accuracy": routed.accuracy,
        "accuracy_ci95": wilson(routed.statuses["correct"], routed.num_tasks),
        "worker_cost_ratio": _ratio(routed.worker_cost_usd, reference.worker_cost_usd),
        "total_cost_ratio": _ratio(routed.total_cost_usd, reference.worker_cost_usd),
        "reference": reference.policy,
        "reference_accuracy": reference.accuracy,
        "errors": routed.statuses["failed"],
        "plan_fallbacks": sum(trace.plan_fallback is not None for trace in traces),
        "allocation_fallbacks": sum(trace.allocation_fallback is not None for trace in traces),
        **_latencies(routed),
        "rows": [_summary_row(report) for report in reports],
    }


def _summary_row(report: PolicyReport) -> dict[str, object]:
    return {
        "name": report.policy,
        "accuracy": report.accuracy,
        "errors": report.statuses["failed"],
        "worker_cost_usd": f"{report.worker_cost_usd:f}",
        "router_cost_usd": f"{report.router_cost_usd:f}",
        "worker_cost_per_query": usd(report.worker_cost_usd / report.num_tasks),
        "calls": {name: use.num_calls for name, use in report.models.items()},
        "tokens": {name: use.usage.total_tokens for name, use in report.models.items()},
        **_latencies(report),
    }


def _latencies(report: PolicyReport) -> dict[str, float]:
    return {"p50_ms": 1000 * report.latency_p50_s, "p95_ms": 1000 * report.latency_p95_s}


def _ratio(cost_usd: Decimal, reference_usd: Decimal) -> float:
    return float(cost_usd / reference_usd) if reference_usd else math.nan
