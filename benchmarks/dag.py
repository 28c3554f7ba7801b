"""Makespan of real dependency graphs on R2's ready queue, a step-by-step loop and a level-by-level loop.

    python benchmarks/dag.py --plans FILE --out runs/bench/dag.json

Each graph is a query with its own plan. The real `Pipeline` answers it over scripted models that take 50 to
100 ms, one model for each millisecond. The seed pins each subtask to a model, so all three schedules do the
same work. The two loops make the same calls through the same `Caller`. They run on every
`--compare-every`-th graph, and R2's figures in that comparison cover the same graphs only. There each graph
runs under all three schedules, in three rounds that mix them, so that other work on the machine slows all
schedules alike.

- *Critical path*: the longest chain of nominal service times.
- *Makespan*: the time from the moment the router gets the query to its answer.
- *Scheduling of a subtask*: the time from the end of its last dependency's service to the arrival of its own
  call at the engine. A subtask without dependencies counts from the moment the router gets the query. All
  work of the router in between is included: settling, starting, rendering, reserving. The timers of the event
  loop count in the makespan, not in the scheduling.

A graph file has one JSON object per line, `{"num_steps": n, "edges": [[from, to], ...]}`. Steps are numbered
from 1. An edge may point to a lower number, but the edges must not form a circle.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from r2_serve.calls.budget import Budget
from r2_serve.calls.caller import Caller, CallSpec
from r2_serve.calls.ledger import Ledger
from r2_serve.calls.pool import PoolMember
from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    LimitsConfig,
    ModelConfig,
    RoutingConfig,
    ScriptedEngineConfig,
    VirtualModelConfig,
)
from r2_serve.engines.scripted import ScriptedEngine
from r2_serve.errors import CodecError
from r2_serve.prompts import get_codec
from r2_serve.router.allocator import Allocator
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.pipeline import Pipeline
from r2_serve.types import Completion, EngineCall, Message, Plan, Query, Sampling

SHORTEST_MS, LONGEST_MS = 50, 100
WIDEST = 256
"""Limit on subtasks per plan and at once, so high that only dependencies delay a subtask."""


@dataclass
class Timeline:
    """When each call of one query reached its engine, and when its service ended, by subtask id."""

    starts_s: dict[int, float] = field(default_factory=dict)
    ends_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A plan, and the model that answers each of its subtasks."""

    plan: Plan
    models: tuple[str, ...]
    """Names of models in the order of the subtasks; "m50" takes 50 ms."""

    @property
    def critical_path_s(self) -> float:
        """The longest chain of nominal service times."""
        chain_s: dict[int, float] = {}
        for subtask in self.plan.subtasks:
            own_s = int(self.models[subtask.id - 1][1:]) / 1_000
            chain_s[subtask.id] = own_s + max((chain_s[d] for d in subtask.depends_on), default=0.0)
        return max(chain_s.values())


class TimedEngine:
    """A scripted engine that records when each call came and when its service ended, by query and subtask."""

    def __init__(self, delay_s: float, timelines: dict[str, Timeline]) -> None:
        self._engine = ScriptedEngine(["done"], delay_s=delay_s)
        self._timelines = timelines
        self.stream = self._engine.stream

    async def generate(self, call: EngineCall) -> Completion:
        request_id, _, subtask = (
            call.messages[-1].content.rpartition("<step>\n")[2].split()[0].rpartition("/")
        )
        timeline = self._timelines[request_id]
        timeline.starts_s[int(subtask)] = time.perf_counter()
        completion = await self._engine.generate(call)
        self._engine.calls.clear()
        timeline.ends_s[int(subtask)] = time.perf_counter()
        return completion


def read_graphs(path: Path, limit: int | None, seed: int) -> tuple[list[Graph], int]:
    """The graphs with their steps in topological order, and the number of lines left out for a circle."""
    draw, codec = random.Random(seed), get_codec("instruct")
    graphs: list[Graph] = []
    num_left_out = 0
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").strip("\n").split("\n")):
        if limit is not None and len(graphs) == limit:
            break
        row = json.loads(line)
        needs: dict[int, list[int]] = {i: [] for i in range(1, row["num_steps"] + 1)}
        for before, after in row["edges"]:
            needs.setdefault(after, []).append(before)
        steps = [{"id": i, "text": "step", "depends_on": sorted(set(d))} for i, d in needs.items()]
        try:
            plan = codec.parse_plan(json.dumps({"subtasks": steps}), query="")
        except CodecError:
            num_left_out += 1
            continue
        marked = tuple(s.model_copy(update={"text": f"q{number}/{s.id} step"}) for s in plan.subtasks)
        models = tuple(f"m{draw.randint(SHORTEST_MS, LONGEST_MS)}" for _ in marked)
        graphs.append(Graph(Plan(subtasks=marked), models))
    return graphs, num_left_out


def make_pipeline(timelines: dict[str, Timeline]) -> Pipeline:
    delays_ms = {f"m{ms}": ms for ms in range(SHORTEST_MS, LONGEST_MS + 1)}
    names = tuple(delays_ms)
    free = {
        "usd_per_mtok_in": Decimal(1),
        "usd_per_mtok_out": Decimal(2),
        "engine": ScriptedEngineConfig(kind="scripted"),
    }
    cards = [ModelConfig(name=name, max_tokens=64, **free) for name in names]
    pool = {
        card.name: PoolMember(card, TimedEngine(delays_ms[card.name] / 1_000, timelines)) for card in cards
    }
    virtual = VirtualModelConfig(
        pool=names, decomposer=DecomposerConfig(model=names[0]), allocator=AllocatorConfig(model=names[0])
    )
    wide = {"max_calls": WIDEST, "max_subtasks": WIDEST, "max_depth": WIDEST, "max_parallel": WIDEST}
    limits = LimitsConfig(**wide, max_total_tokens=10**9, deadline_s=600)
    return Pipeline(
        pool, RoutingConfig(virtual_models={"r2": virtual}, limits=limits), Decomposer(pool), Allocator(pool)
    )


Schedule = Callable[[Pipeline, Graph], Awaitable[None]]


async def r2(pipeline: Pipeline, graph: Graph) -> None:
    """Runs the router itself on the client's own plan, with each subtask pinned to its model."""
    pins = dict(enumerate(graph.models, 1))
    question = (Message(role="user", content="question"),)
    await pipeline.answer(
        Query(request_id="bench", model="r2", messages=question, plan=graph.plan, pinned=pins)
    )


async def step_by_step(pipeline: Pipeline, graph: Graph) -> None:
    """Runs one subtask after another, as in the paper (arXiv 2506.05901)."""
    caller, answers = _caller(pipeline), dict[int, str]()
    for subtask in graph.plan.subtasks:
        answers[subtask.id] = await _ask(caller, graph, subtask.id, answers)


async def level_by_level(pipeline: Pipeline, graph: Graph) -> None:
    """Runs all subtasks of one depth at once, and the next depth after the last of them."""
    caller, answers = _caller(pipeline), dict[int, str]()
    for level in graph.plan.levels:
        async with asyncio.TaskGroup() as group:
            tasks = {i: group.create_task(_ask(caller, graph, i, answers)) for i in level}
        answers.update({i: task.result() for i, task in tasks.items()})


def _caller(pipeline: Pipeline) -> Caller:
    return Caller(pipeline.pool, Ledger(Budget(max_calls=WIDEST, max_tokens=10**9)), LimitsConfig())


async def _ask(caller: Caller, graph: Graph, subtask_id: int, answers: dict[int, str]) -> str:
    subtask = graph.plan.subtasks[subtask_id - 1]
    needed = {d: answers[d] for d in subtask.depends_on}
    question = [Message(role="user", content="question")]
    spec = CallSpec(
        render=lambda codec: codec.render_subtask(question, graph.plan, subtask, needed),
        stage="execute",
        subtask=subtask_id,
        sampling=Sampling(temperature=0.0),
    )
    return (await caller.call(graph.models[subtask_id - 1], spec)).answer


@dataclass(frozen=True)
class Run:
    """One graph under one schedule."""

    schedule: Schedule
    graph: Graph
    makespan_s: float
    scheduling_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.graph.critical_path_s


async def timed(schedule: Schedule, graph: Graph, pipeline: Pipeline, timelines: dict[str, Timeline]) -> Run:
    key = graph.plan.subtasks[0].text.partition("/")[0]
    timeline = timelines[key] = Timeline()
    began_s = time.perf_counter()
    await schedule(pipeline, graph)
    makespan_s = time.perf_counter() - began_s
    waits_s = tuple(
        timeline.starts_s[s.id] - max((timeline.ends_s[d] for d in s.depends_on), default=began_s)
        for s in graph.plan.subtasks
    )
    return Run(schedule, graph, makespan_s, waits_s)


async def replay(
    work: Sequence[tuple[Schedule, Graph]], at_once: int, advance: Callable[[], object]
) -> list[Run]:
    """Runs all of `work` once with `at_once` queries under way. `work` must not hold a graph twice."""
    timelines: dict[str, Timeline] = {}
    pipeline, waiting, runs = make_pipeline(timelines), list(reversed(work)), list[Run]()

    async def client() -> None:
        while waiting:
            runs.append(await timed(*waiting.pop(), pipeline, timelines))
            advance()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return runs


def figures(runs: Sequence[Run]) -> dict[str, float]:
    """The figures of one schedule. Ratios are per graph; `ratio_of_sums` gives long graphs more weight."""
    ratios, waits_ms = sorted(r.ratio for r in runs), sorted(1_000 * s for r in runs for s in r.scheduling_s)
    total_s, critical_s = sum(r.makespan_s for r in runs), sum(r.graph.critical_path_s for r in runs)
    return {
        "graphs": len(runs),
        "subtasks": len(waits_ms),
        "makespan_s_sum": round(total_s, 3),
        "makespan_over_critical_path": round(statistics.fmean(ratios), 4),
        "makespan_over_critical_path_p50": round(_quantile(ratios, 0.5), 4),
        "makespan_over_critical_path_p95": round(_quantile(ratios, 0.95), 4),
        "makespan_over_critical_path_ratio_of_sums": round(total_s / critical_s, 4),
        "scheduling_ms_per_subtask_p50": round(_quantile(waits_ms, 0.5), 3),
        "scheduling_ms_per_subtask_p95": round(_quantile(waits_ms, 0.95), 3),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def compare(graphs: Sequence[Graph], at_once: int, compare_every: int) -> dict[str, dict[str, float]]:
    """Figures of R2 on all graphs, and of the three schedules on one subset of them."""
    subset, schedules = graphs[::compare_every], (r2, level_by_level, step_by_step)
    with Progress(console=Console(stderr=True)) as progress:

        def bar(name: str, total: int) -> Callable[[], object]:
            task = progress.add_task(name, total=total)
            return lambda: progress.advance(task)

        whole = asyncio.run(replay([(r2, graph) for graph in graphs], at_once, bar("r2 on all", len(graphs))))
        advance, mixed = bar("three schedules", 3 * len(subset)), list[Run]()
        for turn in range(3):
            work = [(schedules[(i + turn) % 3], graph) for i, graph in enumerate(subset)]
            mixed += asyncio.run(replay(work, at_once, advance))
    of_each = {
        f"{s.__name__}_on_subset": figures([run for run in mixed if run.schedule is s]) for s in schedules
    }
    return {"r2": figures(whole), **of_each}


def show(report: dict[str, dict[str, float]]) -> None:
    columns = {
        "graphs": "graphs",
        "mean makespan / critical path": "makespan_over_critical_path",
        "p95": "makespan_over_critical_path_p95",
        "scheduling ms per subtask, p50": "scheduling_ms_per_subtask_p50",
        "sum of makespans s": "makespan_s_sum",
    }
    table = Table("schedule", *columns)
    for name, measured in report.items():
        table.add_row(name, *(f"{measured[key]:g}" for key in columns.values()))
    Console(width=140).print(table)


def main(
    plans: Annotated[Path, typer.Option(help="Dependency graphs (JSONL).", exists=True)],
    out: Annotated[Path, typer.Option(help="File of the figures (JSON).")] = Path("runs/bench/dag.json"),
    queries_at_once: Annotated[int, typer.Option(min=1, help="Queries under way at a time.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of graphs; default: all.")] = None,
    compare_every: Annotated[
        int, typer.Option(min=1, help="The three schedules are compared on every N-th graph.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the service times.")] = 0,
) -> None:
    """Replay dependency graphs through the router and through two simpler loops."""
    graphs, num_left_out = read_graphs(plans, limit, seed)
    measured = compare(graphs, queries_at_once, compare_every)
    ours, levels, steps = (
        measured[f"{name}_on_subset"]["makespan_s_sum"] for name in ("r2", "level_by_level", "step_by_step")
    )
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load_1m": round(os.getloadavg()[0], 2),
        },
        "queries_at_once": queries_at_once,
        "service_ms": [SHORTEST_MS, LONGEST_MS],
        "seed": seed,
        "graphs_left_out": num_left_out,
        **measured["r2"],
        "compared_on": (
            f"every {compare_every}. graph, {measured['r2_on_subset']['graphs']} in all, "
            "the same for all three"
        ),
        "speedup_over_step_by_step": round(steps / ours, 3),
        "speedup_over_level_by_level": round(levels / ours, 3),
        "schedules": measured,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    show(measured)
    over_steps = f"{report['speedup_over_step_by_step']}x over step by step"
    over_levels = f"{report['speedup_over_level_by_level']}x over level by level"
    Console(width=140).print(f"speed-up {over_steps}, {over_levels}, on {report['compared_on']}; {out}")


if __name__ == "__main__":
    typer.run(main)
