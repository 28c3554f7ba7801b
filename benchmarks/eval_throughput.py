"""Tasks per second of the evaluation runner over scripted models of zero latency: what the harness itself costs.

    python benchmarks/eval_throughput.py --tasks 2000 --out runs/bench/eval_throughput.json

Each task goes through the real router, grader and row file, in one process: query, plan of three steps parsed and checked,
allocation, ready queue, ledger, trace, verdict, checked write. `single` is one call per task, `r2` five. *Overhead per task* is
wall time by tasks; *CPU* is what the process used, and so what one core can do at most.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    ModelConfig,
    RouterConfig,
    RoutingConfig,
    ScriptedEngineConfig,
    VirtualModelConfig,
)
from r2_serve.errors import EngineRefused
from r2_serve.evaluation.asker import InProcessAsker
from r2_serve.evaluation.graders import Grader
from r2_serve.evaluation.manifest import Manifest, data_sha256, pool_models, setting_of
from r2_serve.evaluation.policies import PolicyConfig
from r2_serve.evaluation.rows import Task, task_of
from r2_serve.evaluation.runner import Runner, RunOptions
from r2_serve.types import Completion, Engine, Message, Sampling, Usage

NEEDED_TASKS_PER_S = 200
PLAN = json.dumps(
    {
        "subtasks": [
            {"id": 1, "text": "recall the first", "depends_on": []},
            {"id": 2, "text": "recall the second", "depends_on": []},
            {"id": 3, "text": "add #1 and #2", "depends_on": [1, 2]},
        ]
    }
)
REPLIES = {"planner": lambda prompt: PLAN, "picker": lambda prompt: json.dumps({"models": ["worker"] * 3})}


class InstantEngine:
    """Replies at once and keeps nothing."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self._reply = reply

    async def generate(
        self, messages: Sequence[Message], sampling: Sampling, *, adapter: str | None = None, timeout_s: float | None = None
    ) -> Completion:
        return Completion(text=self._reply(messages[-1].content), usage=Usage(prompt_tokens=20, completion_tokens=5), finish_reason="stop")

    def stream(self, *_: Any, **__: Any) -> Any:
        raise EngineRefused("nothing is streamed here")


def add(prompt: str) -> str:
    question = prompt.partition("</question>")[0]
    return str(sum(int(number) for number in re.findall(r"\d+", question)))


def make_engine(card: ModelConfig) -> Engine:
    return InstantEngine(REPLIES.get(card.name, add))


def sums(num_tasks: int) -> tuple[Task, ...]:
    return tuple(task_of("words", {"id": f"s{i}", "query": f"Add {i} and 7.", "gold": str(i + 7)}) for i in range(num_tasks))


def make_runner(directory: Path, num_tasks: int, policy: str, num_at_once: int) -> Runner:
    price = {"usd_per_mtok_in": Decimal(1), "usd_per_mtok_out": Decimal(2), "engine": ScriptedEngineConfig(kind="scripted")}
    router = RouterConfig(models=tuple(ModelConfig(name=name, **price) for name in ("worker", "planner", "picker")))
    modules = {"decomposer": DecomposerConfig(model="planner", num_samples=1), "allocator": AllocatorConfig(model="picker")}
    routing = RoutingConfig(virtual_models={"r2": VirtualModelConfig(pool=("worker",), **modules)})
    tasks = sums(num_tasks)
    manifest = Manifest(
        benchmark="words", data="sums", data_sha256=data_sha256(tasks), num_tasks=num_tasks, split="all", limit=None, policies=(policy,),
        policy_config=PolicyConfig(), seed=0, virtual_model="r2", pool=("worker",), models=pool_models(router), prices_as_of="",
        endpoint=None, config_sha256="-", code_version="-",
    )  # fmt: skip
    asker = InProcessAsker(router, routing, make_engine)
    return Runner(directory, manifest, tasks, setting_of(router, routing, "r2"), asker, Grader(), RunOptions(num_at_once=num_at_once))


def measure(num_tasks: int, policy: str, num_at_once: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(Path(folder), num_tasks, policy, num_at_once)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        standing = asyncio.run(runner.run())
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert standing.num_correct == standing.num_done == num_tasks, "the scripted models solve every task"
    return {
        "policy": policy,
        "tasks": num_tasks,
        "tasks_per_s": num_tasks / wall_s,
        "overhead_ms_per_task": 1000 * wall_s / num_tasks,
        "cpu_ms_per_task": 1000 * cpu_s / num_tasks,
    }


def main(
    tasks: Annotated[int, typer.Option(min=1)] = 2000,
    at_once: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Of which the median is told.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Exits with 1 where a policy stays below 200 tasks/s."""
    policies = ("single:worker", "r2")
    measured = [[measure(tasks, policy, at_once) for _ in range(rounds)] for policy in policies]
    rows = [sorted(results, key=lambda row: float(row["tasks_per_s"]))[rounds // 2] for results in measured]
    table = Table(title=f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {at_once} at once, median of {rounds}")
    for column in ("policy", "tasks/s", "ms per task", "CPU ms per task"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (row["tasks_per_s"], row["overhead_ms_per_task"], row["cpu_ms_per_task"])
        table.add_row(row["policy"], f"{figures[0]:,.0f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}")
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}
        out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    if min(row["tasks_per_s"] for row in rows) < NEEDED_TASKS_PER_S:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
