"""`make demo`: routes held-out tasks through the endpoint over HTTP, and shows honestly what routing buys.

Two generated domains, on the shipped tiny models. For each: the routed row, each pool model alone on the whole
task, and the largest one on the very plans that were routed. Cost is tokens times price, price proportional to
parameters: it is not wall time.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from r2_serve.client import RequestFailed, ask, chat_body, new_client, question
from r2_serve.config import RoutingConfig
from r2_serve.files import write_whole
from r2_serve.lab.domains import Task, scan, words
from r2_serve.lab.reports.terminal import dag_view, trace_view, usd
from r2_serve.lab.runs import machine
from r2_serve.types import Plan, Trace, Usage

AT_ONCE = 32
SEED = 20_261_124


@dataclass(frozen=True)
class Domain:
    """One of the two generated domains."""

    name: str
    title: str
    virtual_model: str
    tasks: Callable[[int], list[Task]]
    reference: Literal["alone", "same plans"]
    """What costs are divided by: the largest model on the whole task, or on every subtask of the same plans."""


def _words(num_tasks: int) -> list[Task]:
    return words.tasks("test", num_tasks, SEED)


def _scan(num_tasks: int) -> list[Task]:
    return _spread(scan.tasks("length"), num_tasks)


DOMAINS = {
    "words": Domain("words", "arithmetic word problems (held out)", "r2", _words, "same plans"),
    "scan": Domain(
        "scan", "SCAN, length split (held out: longer than any in training)", "r2-scan", _scan, "alone"
    ),
}


@dataclass(frozen=True)
class Ask:
    """One request."""

    model: str
    text: str
    plan: Plan | None = None
    policy: str | None = None


@dataclass(frozen=True)
class Reply:
    """What came back: an answer with its trace, or an error."""

    text: str | None
    trace: Trace | None
    latency_s: float
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """What one way of answering came to over all tasks."""

    name: str
    num_tasks: int
    num_correct: int
    errors: tuple[str, ...]
    """Messages of the queries that were not answered; they count as wrong."""
    worker_cost_usd: Decimal
    router_cost_usd: Decimal
    calls: dict[str, int]
    tokens: dict[str, int]
    p50_ms: float
    p95_ms: float

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_tasks

    @property
    def total_cost_usd(self) -> Decimal:
        return self.worker_cost_usd + self.router_cost_usd


async def run_demo(
    base_url: str, routing: RoutingConfig, names: Sequence[str], num_queries: int, console: Console
) -> dict[str, Any]:
    """Measure every domain of `names`, print its table and one query's DAG; the figures as JSON."""
    summary: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
    }
    async with new_client(base_url) as client:
        for name in names:
            domain = DOMAINS[name]
            pool = routing.virtual_models[domain.virtual_model].pool
            console.rule(f"[bold]{domain.title}")
            summary[name] = await _measure(client, domain, pool, num_queries, console)
    return summary


def write_summary(summary: dict[str, Any], directory: Path) -> Path:
    """`directory`/summary.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "summary.json"
    write_whole(path, json.dumps(summary, indent=2))
    return path


async def _measure(
    client: httpx.AsyncClient, domain: Domain, pool: Sequence[str], num_queries: int, console: Console
) -> dict[str, Any]:
    tasks = domain.tasks(num_queries)
    largest = pool[-1]
    with _progress(console) as progress:

        async def row(name: str, requests: Sequence[Ask]) -> tuple[Row, list[Reply]]:
            bar = progress.add_task(name, total=len(requests))
            replies = await ask_all(client, requests, at_once=AT_ONCE, on_reply=lambda: progress.advance(bar))
            return summarize(name, tasks, replies), replies

        routed, replies = await row("r2, routed", [Ask(domain.virtual_model, task.query) for task in tasks])
        compared = pool if domain.reference == "same plans" else [largest]
        on_plans = [
            (await row(f"{m}, same plans", _on_same_plans(domain, tasks, replies, m)))[0] for m in compared
        ]
        alone = [
            (await row(f"{model}, alone", [Ask(model, task.query) for task in tasks]))[0] for model in pool
        ]
    same_plans = on_plans[-1]
    reference = alone[-1] if domain.reference == "alone" else same_plans
    console.print(_table([routed, *reversed(on_plans), *reversed(alone)], reference))
    console.print(_calls_table(routed, pool))
    for failed in (row for row in (routed, same_plans, alone[-1]) if row.errors):
        console.print(
            f"{failed.name}: {len(failed.errors)} not answered, such as: {failed.errors[0]}",
            style="dim",
            markup=False,
        )
    _print_example(tasks, replies, console)
    _print_verdict(routed, reference, same_plans, console)
    return _as_json(routed, reference, [routed, *on_plans, *alone], replies)


async def ask_all(
    client: httpx.AsyncClient, requests: Sequence[Ask], *, at_once: int, on_reply: Callable[[], None]
) -> list[Reply]:
    """Replies in the order of `requests`, `at_once` under way at a time."""
    places = asyncio.Semaphore(at_once)

    async def reply(request: Ask) -> Reply:
        async with places:
            reply = await _ask(client, request)
        on_reply()
        return reply

    return await asyncio.gather(*map(reply, requests))


async def _ask(client: httpx.AsyncClient, request: Ask) -> Reply:
    query = question(request.model, request.text, plan=request.plan, policy=request.policy)
    start_s = time.monotonic()
    try:
        reply = await ask(client, chat_body(query))
    except RequestFailed as e:
        return Reply(None, None, time.monotonic() - start_s, e.message)
    return Reply(reply.text, reply.r2.trace if reply.r2 else None, time.monotonic() - start_s)


def _on_same_plans(domain: Domain, tasks: Sequence[Task], replies: Sequence[Reply], model: str) -> list[Ask]:
    """The routed queries again with the plans they got, each subtask to `model`; without a plan the whole query."""
    requests = []
    for task, reply in zip(tasks, replies, strict=True):
        trace = reply.trace
        if trace is None or trace.plan is None or trace.plan_fallback:
            requests.append(Ask(model, task.query))
        else:
            requests.append(Ask(domain.virtual_model, task.query, trace.plan, f"all:{model}"))
    return requests


def summarize(name: str, tasks: Sequence[Task], replies: Sequence[Reply]) -> Row:
    """One row; an error is a wrong answer."""
    traces = [reply.trace for reply in replies if reply.trace is not None]
    usage: dict[str, Usage] = {}
    for call in (call for trace in traces for call in trace.calls):
        usage[call.model] = usage.get(call.model, Usage()) + call.usage
    worker = sum((trace.worker_cost_usd for trace in traces), Decimal(0))
    p50, p95 = _percentiles_ms([reply.latency_s for reply in replies])
    return Row(
        name=name,
        num_tasks=len(tasks),
        num_correct=sum(is_correct(task, reply) for task, reply in zip(tasks, replies, strict=True)),
        errors=tuple(reply.error for reply in replies if reply.error is not None),
        worker_cost_usd=worker,
        router_cost_usd=sum((trace.cost_usd for trace in traces), Decimal(0)) - worker,
        calls=dict(Counter(call.model for trace in traces for call in trace.calls)),
        tokens={model: used.total_tokens for model, used in usage.items()},
        p50_ms=p50,
        p95_ms=p95,
    )


def is_correct(task: Task, reply: Reply) -> bool:
    """Exact match of the words of the answer."""
    return reply.text is not None and reply.text.split() == task.gold.split()


def wilson_95(num_correct: int, num_tasks: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion. Source: Wilson (1927), JASA 22."""
    z, n, p = 1.959964, num_tasks, num_correct / num_tasks
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return center - half, center + half


def _percentiles_ms(latencies_s: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(latencies_s, n=20, method="inclusive") if len(latencies_s) > 1 else [latencies_s[0]] * 19
    return 1000 * cuts[9], 1000 * cuts[18]


def _table(rows: Sequence[Row], reference: Row) -> Table:
    measured = f"{rows[0].num_tasks} tasks, {AT_ONCE} at once; cost in % of “{reference.name}”:"
    caption = f"{measured}\ntokens x price, price proportional to parameters, not wall time"
    table = Table(caption=caption, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("who answers", no_wrap=True)
    for column in ("correct", "95 % CI", "workers", "+router", "p50 ms", "p95 ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        low, high = wilson_95(row.num_correct, row.num_tasks)
        costs = [
            f"{100 * _ratio(cost, reference.worker_cost_usd):.1f} %"
            for cost in (row.worker_cost_usd, row.total_cost_usd)
        ]
        accuracy = (f"{100 * row.accuracy:.1f} %", f"{100 * low:.0f}-{100 * high:.0f}")
        style = "bold" if row is rows[0] else None
        table.add_row(row.name, *accuracy, *costs, f"{row.p50_ms:.0f}", f"{row.p95_ms:.0f}", style=style)
    return table


def _calls_table(routed: Row, pool: Sequence[str]) -> Table:
    """Who worked how much for the routed row: the pool in order of price, then the router's own models."""
    table = Table(title="calls and tokens of the routed row", title_style="")
    table.add_column("model")
    for column in ("calls", "share", "tokens"):
        table.add_column(column, justify="right")
    num_worker_calls = sum(routed.calls.get(model, 0) for model in pool)
    for model in [*pool, *(name for name in routed.calls if name not in pool)]:
        calls = routed.calls.get(model, 0)
        share = f"{100 * calls / num_worker_calls:.0f} %" if model in pool and num_worker_calls else "router"
        table.add_row(model, f"{calls:,}", share, f"{routed.tokens.get(model, 0):,}")
    return table


def _print_example(tasks: Sequence[Task], replies: Sequence[Reply], console: Console) -> None:
    """The widest correctly answered plan, as the picture of what routing does."""
    pairs = zip(tasks, replies, strict=True)
    routed = [
        (task, reply.trace)
        for task, reply in pairs
        if reply.trace and reply.trace.plan and is_correct(task, reply)
    ]
    if not routed:
        return
    task, trace = max(
        routed, key=lambda pair: len({s.model for s in pair[1].results}) * 10 + len(pair[1].results)
    )
    console.print(f"\n[bold]One query:[/] {task.query}")
    if trace.plan is not None:
        console.print(dag_view(trace.plan))
    console.print(trace_view(trace))
    console.print(f"[bold]Answer:[/] {trace.answer}\n")


def _print_verdict(routed: Row, reference: Row, same_plans: Row, console: Console) -> None:
    worker, total = (
        _ratio(c, reference.worker_cost_usd) for c in (routed.worker_cost_usd, routed.total_cost_usd)
    )
    behind = _ratio(routed.total_cost_usd, same_plans.worker_cost_usd + routed.router_cost_usd)
    console.print(
        f"[bold]{100 * routed.accuracy:.1f} %[/] correct (reference {100 * reference.accuracy:.1f} %) at [bold]{100 * worker:.1f} %[/] "
        f"of the reference's cost for the workers, [bold]{100 * total:.1f} %[/] with the router's own calls "
        f"({100 * behind:.1f} % of the largest model behind the same router)."
    )


def _as_json(routed: Row, reference: Row, rows: Sequence[Row], replies: Sequence[Reply]) -> dict[str, Any]:
    traces: list[Trace] = [reply.trace for reply in replies if reply.trace is not None]
    return {
        "queries": routed.num_tasks,
        "accuracy": routed.accuracy,
        "accuracy_ci95": wilson_95(routed.num_correct, routed.num_tasks),
        "worker_cost_ratio": _ratio(routed.worker_cost_usd, reference.worker_cost_usd),
        "total_cost_ratio": _ratio(routed.total_cost_usd, reference.worker_cost_usd),
        "reference": reference.name,
        "reference_accuracy": reference.accuracy,
        "errors": len(routed.errors),
        "plan_fallbacks": sum(trace.plan_fallback is not None for trace in traces),
        "allocation_fallbacks": sum(trace.allocation_fallback is not None for trace in traces),
        "p50_ms": routed.p50_ms,
        "p95_ms": routed.p95_ms,
        "rows": [_row_json(row) for row in rows],
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "accuracy": row.accuracy,
        "errors": len(row.errors),
        "worker_cost_usd": f"{row.worker_cost_usd:f}",
        "router_cost_usd": f"{row.router_cost_usd:f}",
        "worker_cost_per_query": usd(row.worker_cost_usd / row.num_tasks),
        "calls": row.calls,
        "tokens": row.tokens,
        "p50_ms": row.p50_ms,
        "p95_ms": row.p95_ms,
    }


def _ratio(cost: Decimal, reference: Decimal) -> float:
    return float(cost / reference) if reference else math.nan


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """`count` of `tasks`, evenly spread over their order."""
    step = max(1, len(tasks) // count)
    return list(tasks[::step])[:count]


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
