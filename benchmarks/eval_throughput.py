"""Tasks per second of the evaluation runner over scripted models without latency: its own cost.

    python benchmarks/eval_throughput.py --tasks 2000 --out runs/bench/eval_throughput.json

Each task goes through the real router, grader and row file in one process: query, plan of three steps (parsed
and checked), allocation, ready queue, ledger, trace, verdict and checked write. `single` makes one call per
task, `r2` five. Two simpler programs run in the same process, in turn with the runner:

- *router by hand*: a loop of asyncio tasks under a semaphore asks the same router for the same answers and
  compares them as text. It has no runner, no grader, no ledger of the run and no rows, so nothing survives a
  crash.
- *models by hand*: the models' calls alone.

The models take no time, so all wall time per task is overhead. *CPU* is the time that this process used.
Other work on the machine changes it less than wall time.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
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
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task, task_of
from r2_serve.lab.evaluation.asker import InProcessAsker
from r2_serve.lab.evaluation.desk import user
from r2_serve.lab.evaluation.manifest import Manifest, data_sha256, pool_models, setting_of
from r2_serve.lab.evaluation.policies import PolicyConfig
from r2_serve.lab.evaluation.runner import Examiner, Runner, RunOptions
from r2_serve.router.router import in_process
from r2_serve.types import Completion, Engine, EngineCall, Query, Usage

Measured = dict[str, Any]
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
    """Replies without delay and keeps no record of its calls."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self._reply = reply

    async def generate(self, call: EngineCall) -> Completion:
        return Completion(
            text=self._reply(call.messages[-1].content),
            usage=Usage(prompt_tokens=20, completion_tokens=5),
            finish_reason="stop",
        )

    def stream(self, call: EngineCall) -> Any:
        raise EngineRefused("nothing is streamed here")


def add(prompt: str) -> str:
    question = prompt.partition("\n\n<")[0]
    return str(sum(int(number) for number in re.findall(r"\d+", question)))


def make_engine(card: ModelConfig) -> Engine:
    return InstantEngine(REPLIES.get(card.name, add))


def sums(num_tasks: int) -> tuple[Task, ...]:
    return tuple(
        task_of("words", {"id": f"s{i}", "query": f"Add {i} and 7.", "gold": str(i + 7)})
        for i in range(num_tasks)
    )


def configs() -> tuple[RouterConfig, RoutingConfig]:
    price = {
        "usd_per_mtok_in": Decimal(1),
        "usd_per_mtok_out": Decimal(2),
        "engine": ScriptedEngineConfig(kind="scripted"),
    }
    router = RouterConfig(
        models=tuple(ModelConfig(name=name, **price) for name in ("worker", "planner", "picker"))
    )
    modules = {
        "plan": "always",
        "decomposer": DecomposerConfig(model="planner", num_samples=1),
        "allocator": AllocatorConfig(model="picker"),
    }
    return router, RoutingConfig(virtual_models={"r2": VirtualModelConfig(pool=("worker",), **modules)})


def make_runner(directory: Path, num_tasks: int, policy: str, num_at_once: int) -> Runner:
    router, routing = configs()
    tasks = sums(num_tasks)
    manifest = Manifest(
        benchmark="words",
        data="sums",
        data_sha256=data_sha256(tasks),
        num_tasks=num_tasks,
        split="all",
        limit=None,
        policies=(policy,),
        policy_config=PolicyConfig(),
        seed=0,
        virtual_model="r2",
        pool=("worker",),
        models=pool_models(router),
        prices_as_of="",
        endpoint=None,
        config_sha256="-",
        code_version="-",
    )
    asker = InProcessAsker(router, routing, make_engine)
    return Runner(
        directory,
        manifest,
        tasks,
        Examiner(asker, Grader(), setting_of(router, routing, "r2")),
        RunOptions(num_at_once=num_at_once),
    )


def measure(num_tasks: int, policy: str, num_at_once: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(Path(folder), num_tasks, policy, num_at_once)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        standing = asyncio.run(runner.run())
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert standing.num_correct == standing.num_done == num_tasks, "the scripted models solve every task"
    return figures("runner", num_tasks, wall_s, cpu_s)


async def _in_turn(ask: Callable[[Task], Awaitable[str]], tasks: Sequence[Task], num_at_once: int) -> int:
    """Asks all tasks in a plain loop. Returns the number of right answers."""
    slots = asyncio.Semaphore(num_at_once)

    async def one(task: Task) -> bool:
        async with slots:
            return await ask(task) == str(task.row["gold"])

    return sum(await asyncio.gather(*(one(task) for task in tasks)))


def ask_router(policy: str) -> Callable[[Task], Awaitable[str]]:
    router = in_process(*configs(), make_engine)
    model = "r2" if policy == "r2" else "worker"

    async def ask(task: Task) -> str:
        return (await router.answer(Query(request_id=task.id, model=model, messages=user(task.query)))).text

    return ask


def ask_models(policy: str) -> Callable[[Task], Awaitable[str]]:
    engines = {name: InstantEngine(REPLIES.get(name, add)) for name in ("worker", "planner", "picker")}
    names = ("planner", "picker", "worker", "worker", "worker") if policy == "r2" else ("worker",)

    async def ask(task: Task) -> str:
        call = EngineCall(messages=user(task.query))
        return [await engines[name].generate(call) for name in names][-1].text

    return ask


def measure_by_hand(
    name: str, ask: Callable[[Task], Awaitable[str]], num_tasks: int, num_at_once: int
) -> Measured:
    tasks = sums(num_tasks)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    num_correct = asyncio.run(_in_turn(ask, tasks, num_at_once))
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert num_correct == num_tasks, "the scripted models solve every task"
    return figures(name, num_tasks, wall_s, cpu_s)


def figures(name: str, num_tasks: int, wall_s: float, cpu_s: float) -> Measured:
    return {
        "what": name,
        "tasks_per_s": num_tasks / wall_s,
        "ms_per_task": 1000 * wall_s / num_tasks,
        "cpu_ms_per_task": 1000 * cpu_s / num_tasks,
    }


def measure_all(policy: str, num_tasks: int, num_at_once: int, num_rounds: int) -> list[Measured]:
    """The median round by CPU time of the three programs, which take turns; the runner comes first."""
    rounds = [
        (
            measure(num_tasks, policy, num_at_once),
            measure_by_hand("router by hand", ask_router(policy), num_tasks, num_at_once),
            measure_by_hand("models by hand", ask_models(policy), num_tasks, num_at_once),
        )
        for _ in range(num_rounds)
    ]
    return [
        sorted(way, key=lambda row: float(row["cpu_ms_per_task"]))[num_rounds // 2]
        for way in zip(*rounds, strict=True)
    ]


def main(
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks.")] = 2000,
    at_once: Annotated[int, typer.Option(min=1, help="Tasks under way at a time.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds; the median is shown.")] = 3,
    out: Annotated[Path | None, typer.Option(help="File of the figures (JSON).")] = None,
) -> None:
    """Measure the runner. The exit status is 1 if it stays below 200 tasks/s."""
    measured = {policy: measure_all(policy, tasks, at_once, rounds) for policy in ("single:worker", "r2")}
    table = Table(
        title=f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {tasks} tasks, {at_once} at once, "
        f"median of {rounds}",
        box=SIMPLE,
    )
    for column in ("policy", "what", "tasks/s", "ms/task", "CPU ms/task", "CPU"):
        table.add_column(column, justify="left" if column in ("policy", "what") else "right")
    for policy, rows in measured.items():
        for row in rows:
            share = row["cpu_ms_per_task"] / rows[0]["cpu_ms_per_task"]
            numbers = (
                f"{row['tasks_per_s']:,.0f}",
                f"{row['ms_per_task']:.2f}",
                f"{row['cpu_ms_per_task']:.2f}",
                f"{100 * share:.0f} %",
            )
            table.add_row(policy if row is rows[0] else "", row["what"], *numbers)
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()}
        out.write_text(
            json.dumps(
                {"machine": machine, "tasks": tasks, "at_once": at_once, "measured": measured}, indent=2
            )
            + "\n"
        )
    if min(rows[0]["tasks_per_s"] for rows in measured.values()) < NEEDED_TASKS_PER_S:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
