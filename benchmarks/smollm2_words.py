"""SmolLM2-135M-Instruct as the decomposer of word problems, before training, after SFT and after GRPO.

    r2-train fetch-smollm2
    python benchmarks/smollm2_words.py --out runs/smollm2

The whole pipeline runs: collect (the embedded decomposer is the teacher), search, SFT, and a half-round of
GRPO with LoRA on the served pool. The table counts validation tasks, none of which is trained on. A run that
was killed goes on. It took 40 minutes on two cores at a load of 20.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.runs import machine
from r2_train.config import load_config
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import half_round, print_rounds
from r2_train.stages.tasks import verdict

CONFIG = Path(__file__).parent / "smollm2" / "train.yaml"
BASE = Path("runs/SmolLM2-135M-Instruct")
Figures = dict[str, float]


def main(
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/smollm2"),
    config: Annotated[Path, typer.Option(help="Settings of the run.")] = CONFIG,
) -> None:
    """Train, measure each stage, and print the table."""
    console = Console(markup=False, width=110)
    table = asyncio.run(pipeline(TrainingRun(load_config(config), out, console)))
    write_whole(out / "table.json", json.dumps(table, indent=2) + "\n")
    console.print(drawn(table))
    console.print(json.dumps(machine()))


async def pipeline(run: TrainingRun) -> dict[str, Figures]:
    """The figures of each stage, by its name."""
    await run.collect()
    await run.search()
    allocator = await asyncio.to_thread(run.sft, "allocator")
    table = {"before training": await measured(run, {"decomposer": BASE, "allocator": allocator})}
    began = time.process_time()
    decomposer = await asyncio.to_thread(run.sft, "decomposer")
    table["SFT"] = await measured(run, {"decomposer": decomposer, "allocator": allocator})
    table["SFT"]["cpu_s"] = time.process_time() - began
    began = time.process_time()
    print_rounds(run.console, await half_round(run, "decomposer"))
    trained = run.directory / "rounds" / "01-decomposer" / "final"
    table["GRPO"] = await measured(run, {"decomposer": trained, "allocator": allocator})
    table["GRPO"]["cpu_s"] = time.process_time() - began
    return table


async def measured(run: TrainingRun, pair: Pair) -> Figures:
    """Shares of validation tasks, and means per task. Calls are cached, so a second measurement is free."""
    async with run.pool(pair) as pool:
        rows = await map_all(run.tasks.validation, lambda task: one(pool, task), num_at_once=pool.num_at_once)
    figures = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    run.console.print(f"{pair['decomposer']}: {drawn_row(figures)}")
    return figures


async def one(pool: ServedPool, task: Task) -> Figures:
    rollout = await pool.run(f"measure-{task.id}", task.query)
    replies = [call.usage.completion_tokens for call in rollout.calls if call.stage == "decompose"]
    return {
        "valid": float(is_planned(rollout)),
        "right": float(bool(await verdict(Grader(), task, rollout))),
        "reply_tokens": sum(replies) / max(1, len(replies)),
        "failed": float(rollout.has_failed),
    }


def is_planned(rollout: Rollout) -> bool:
    return rollout.plan is not None and rollout.trace is not None and rollout.trace.plan_fallback is None


def drawn_row(figures: Mapping[str, float]) -> str:
    shares = (f"{name} {100 * figures[name]:.0f} %" for name in ("valid", "right", "failed"))
    return ", ".join([*shares, f"{figures['reply_tokens']:.0f} tokens per reply"])


def drawn(table: Mapping[str, Figures]) -> Table:
    found = Table("", "valid plans", "right", "tokens per reply", "CPU s")
    for name, figures in table.items():
        shares = (f"{100 * figures[key]:.0f} %" for key in ("valid", "right"))
        cpu_s = f"{figures['cpu_s']:.0f}" if "cpu_s" in figures else ""
        found.add_row(name, *shares, f"{figures['reply_tokens']:.0f}", cpu_s)
    return found


if __name__ == "__main__":
    typer.run(main)
