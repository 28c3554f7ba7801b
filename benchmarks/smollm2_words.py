"""SmolLM2-135M-Instruct on word problems of two steps: asked directly, and as the router's decomposer.

    r2-train fetch-smollm2
    python benchmarks/smollm2_words.py --out runs/smollm2

The stages are those of `r2-train`: collect (the embedded decomposer is the teacher), SFT, and a half-round of
GRPO, with LoRA on the served pool. The table counts validation tasks, none of which is trained on. A run that
was killed goes on: every call is stored.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from r2_serve.config.prompts import PromptExample
from r2_serve.engines import resolve_checkpoint
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.runs import machine
from r2_serve.types import Message, Plan, Sampling
from r2_train.config import TrainConfig, load_config
from r2_train.rollouts.progress import map_all
from r2_train.rollouts.served_pool import Rollout, ServedPool
from r2_train.run import TrainingRun
from r2_train.stages.alternate import alternate, print_rounds
from r2_train.stages.tasks import is_correct, verdict

CONFIG = Path(__file__).parent / "smollm2" / "train.yaml"
CHAT = "smollm2"
WORKER = "words-22k"
NUM_SHOWN = 2
"""Examples in the prompt of the row that has some."""
DIRECT_TOKENS = 120
Figures = dict[str, float]


def main(
    out: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/smollm2"),
    config: Annotated[Path, typer.Option(help="Settings of the run.")] = CONFIG,
) -> None:
    """Train, measure each stage, and print the table."""
    console = Console(markup=False, width=110)
    study = Study.opened(load_config(config), out, console)
    table = asyncio.run(study.table())
    write_whole(out / "table.json", json.dumps({"machine": machine(), "table": table}, indent=2) + "\n")
    console.print(drawn(table))


class Study:
    """One run, and the same pool where the chat model carries out the steps itself."""

    def __init__(self, run: TrainingRun, chat: TrainingRun) -> None:
        self.run, self.chat, self.console = run, chat, run.console

    @classmethod
    def opened(cls, config: TrainConfig, out: Path, console: Console) -> Study:
        chat = config.pool.model_copy(update={"virtual_model": "chat"})
        return cls(
            TrainingRun(config, out, console),
            TrainingRun(config.model_copy(update={"pool": chat}), out / "chat", console),
        )

    async def table(self) -> dict[str, Figures]:
        """The figures of each row, by its name."""
        await self.run.collect()
        began = time.process_time()
        trained = await asyncio.to_thread(self.run.sft, "decomposer")
        spent = {"cpu_s": time.process_time() - began}
        table = {"own plans after SFT": spent | await self.own_plans(trained)}
        table["asked directly"] = await self.asked_directly()
        began = time.process_time()
        allocator = Path(resolve_checkpoint("embedded:words-allocator"))
        _, rows = await alternate(self.run, {"decomposer": trained, "allocator": allocator})
        print_rounds(self.console, rows)
        spent = {"cpu_s": time.process_time() - began}
        last = self.run.directory / "rounds" / "01-decomposer" / "final"
        table["own plans after GRPO"] = spent | await self.own_plans(last)
        table["own plans, untrained, two examples shown"] = await self.own_plans(None, num_shown=NUM_SHOWN)
        table["own plans, untrained"] = await self.own_plans(None)
        kept = {item.task.id: item.plan for item in self.run.kept_plans()[1]}
        table["plans of the teacher"] = await self.with_plans({t.id: kept.get(t.id) for t in self.tasks})
        return table

    @property
    def tasks(self) -> Sequence[Task]:
        return self.run.tasks.validation

    async def asked_directly(self) -> Figures:
        async with self.chat.pool() as pool:

            async def one(task: Task) -> Figures:
                sampling = Sampling(max_tokens=DIRECT_TOKENS, temperature=0.0)
                reply = await pool.ask(CHAT, [Message(role="user", content=task.query)], sampling)
                is_right = await is_correct(Grader(), task, reply.text)
                return {"right_alone": float(bool(is_right)), "tokens": float(reply.usage.completion_tokens)}

            return await self.means("asked directly", one)

    async def own_plans(self, decomposer: Path | None, *, num_shown: int = 0) -> Figures:
        """The chat model plans, then the tiny workers carry the plans out."""
        async with self.run.pool(None if decomposer is None else {"decomposer": decomposer}) as plain:
            pool = self.shown(plain, num_shown)

            async def one(task: Task) -> Figures:
                rollout = await pool.run(f"measure-{task.id}", task.query, policy=f"all:{WORKER}")
                written = [c.usage.completion_tokens for c in rollout.calls if c.stage == "decompose"]
                return {
                    "valid": float(is_planned(rollout)),
                    "right_workers": float(bool(await verdict(Grader(), task, rollout))),
                    "tokens": sum(written) / max(1, len(written)),
                    "failed": float(rollout.has_failed),
                }

            return await self.means(str(decomposer or f"{num_shown} examples"), one)

    async def with_plans(self, plans: Mapping[str, Plan | None]) -> Figures:
        """What the chat model, and the tiny workers, make of the steps of given plans."""
        async with self.chat.pool() as chat, self.run.pool() as pool:

            async def right(pool: ServedPool, task: Task, model: str) -> float:
                if (plan := plans[task.id]) is None:
                    return 0.0
                models = (model,) * len(plan.subtasks)
                rollout = await pool.run(f"steps-{task.id}", task.query, plan=by_text(plan), models=models)
                return float(bool(await verdict(Grader(), task, rollout)))

            async def one(task: Task) -> Figures:
                return {
                    "right_alone": await right(chat, task, CHAT),
                    "right_workers": await right(pool, task, WORKER),
                }

            return await self.means("given plans", one)

    def shown(self, pool: ServedPool, number: int) -> ServedPool:
        """The pool, whose decomposer's prompt shows so many training tasks with their plans."""
        chosen = self.run.kept_plans()[0][:number]
        examples = tuple(PromptExample(query=item.task.query, plan=item.plan) for item in chosen)
        section = pool.virtual.decomposer
        assert section.prompts is not None
        prompts = section.prompts.model_copy(update={"examples": examples})
        return pool.changed(decomposer=section.model_copy(update={"prompts": prompts}), prompts=prompts)

    async def means(self, name: str, one: Callable[[Task], Awaitable[Figures]]) -> Figures:
        began = time.process_time()
        rows = await map_all(self.tasks, one, num_at_once=self.run.config.pool.num_at_once)
        figures = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        self.console.print(f"{name}: {figures} ({time.process_time() - began:.0f} CPU s)")
        return figures


def is_planned(rollout: Rollout) -> bool:
    """Whether the model's own plan was run, and not one that the router had to take in its place."""
    return rollout.plan is not None and rollout.trace is not None and rollout.trace.plan_fallback is None


def by_text(plan: Plan) -> Plan:
    """The plan whose steps read their text and the answers that they name, and not the question."""
    steps = [step.model_copy(update={"needs_query": False}) for step in plan.subtasks]
    return plan.model_copy(update={"subtasks": tuple(steps)})


def drawn(table: Mapping[str, Figures]) -> Table:
    found = Table("", "valid plans", "right, with tiny workers", "right, on its own", "tokens", "CPU s")
    for name, figures in table.items():
        shares = ("valid", "right_workers", "right_alone")
        cells = [f"{100 * figures[key]:.0f} %" if key in figures else "" for key in shares]
        numbers = [f"{figures[key]:.0f}" if key in figures else "" for key in ("tokens", "cpu_s")]
        found.add_row(name, *cells, *numbers)
    return found


if __name__ == "__main__":
    typer.run(main)
