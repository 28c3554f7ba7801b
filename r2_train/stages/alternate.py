"""`r2-train alternate`: freeze one module, train the other by GRPO, swap; after each half-round the router is measured.

RL data is rebuilt from the newest pair before each half-round: the allocator is trained on plans that the decomposer now
makes and that the largest model carries out rightly (others tell nothing of models), the decomposer on queries. Each half-round's
checkpoints are measured on validation tasks through the whole router; the best one goes on if it beats what there was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r2_serve.grading.graders import Grader
from r2_serve.lab.jsonl import JsonlLog, read_jsonl
from r2_serve.types import Record
from r2_train.config import Module
from r2_train.launch.launch import launch
from r2_train.rollouts.progress import map_all
from r2_train.run import Pair, TrainingRun
from r2_train.stages.examples import Example, allocation_example, plan_example, write_examples
from r2_train.stages.grpo import GrpoStage
from r2_train.stages.grpo import run as grpo_stage
from r2_train.stages.measure import RouterScore
from r2_train.stages.model_files import complete_checkpoint, has_final, load_tokenizer
from r2_train.stages.rewards import Reference
from r2_train.stages.tasks import is_correct

ROUNDS = "rounds.jsonl"


class RoundRow(Record):
    """The router after SFT (`half_round` 0) or after a half-round."""

    half_round: int
    module: Module | None = None
    """Trained in it."""
    checkpoint: str = ""
    """The one that was best in it."""
    is_kept: bool
    """Whether it beat what there was."""
    num_examples: int = 0
    score: RouterScore


@dataclass
class Alternation:
    """The state of one `alternate`: the best pair so far."""

    run: TrainingRun
    pair: Pair
    reference: Reference
    rows: list[RoundRow] = field(default_factory=list)

    @property
    def best(self) -> RoundRow:
        return [row for row in self.rows if row.is_kept][-1]

    def record(self, row: RoundRow) -> None:
        """One more line of the table."""
        with JsonlLog(self.run.directory / ROUNDS, rows_per_sync=1) as log:
            log.append(row)
        self.rows.append(row)

    async def half_round(self, number: int, module: Module) -> RoundRow:
        """Trains `module`, measures its checkpoints, and takes the best one over if it beats the best so far."""
        directory = self.run.directory / "rounds" / f"{number:02d}-{module}"
        num_examples = self._train(module, directory, await self._examples(module))
        options = {
            path: await self.run.validate({**self.pair, module: path}, self.reference)
            for path in self._checkpoints(module, directory)
        }
        weights = self.run.config.alternate
        path = max(options, key=lambda option: options[option].value(weights))
        is_better = options[path].value(weights) > self.best.score.value(weights)
        if is_better:
            self.pair = self.run.keep_best({**self.pair, module: path})
        return RoundRow(
            half_round=number,
            module=module,
            checkpoint=path.name,
            is_kept=is_better,
            num_examples=num_examples,
            score=options[path],
        )

    def _train(self, module: Module, directory: Path, examples: Sequence[Example]) -> int:
        config, other = self.run.config, _other(module)
        grpo = config.module(module).grpo
        stage = GrpoStage(
            module=module,
            base=str(self.pair[module]),
            examples=write_examples(directory / "examples.jsonl", examples[: grpo.num_prompts]),
            grpo=grpo,
            pool=config.pool,
            data=config.data,
            partner=self.pair[other],
            reference=self.reference,
            cache=self.run.directory / "calls",
            seed=config.seed,
        )
        if not has_final(directory):
            launch(grpo_stage, stage, launch=config.launch, directory=directory)
        return len(examples[: grpo.num_prompts])

    async def _examples(self, module: Module) -> list[Example]:
        train = self.run.tasks.train
        with self.run.pool(self.pair) as pool:
            codec = pool.members[pool.module_model(module).name].codec
            if module == "decomposer":
                return [plan_example(codec, pool.routing.limits, task.id, task.query) for task in train]
            grader = Grader()
            outcomes = await map_all(
                train,
                lambda task: pool.run(f"plan-{task.id}", task.query, policy=f"all:{pool.largest}"),
                num_at_once=pool.num_at_once,
            )
            plans = [
                (task, outcome.trace.plan)
                for task, outcome in zip(train, outcomes, strict=True)
                if outcome.trace is not None
                and outcome.trace.plan is not None
                and await is_correct(grader, task, outcome.answer)
            ]
            return [allocation_example(codec, pool.cards, task.id, task.query, plan) for task, plan in plans]

    def _checkpoints(self, module: Module, directory: Path) -> list[Path]:
        """Those that the trainer saved on the way, and the last; each made loadable by serving."""
        tokenizer = load_tokenizer(str(self.pair[module]))
        paths = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
        for path in paths:
            complete_checkpoint(path, tokenizer)
        return [*paths, directory / "final"]


async def alternate(
    run: TrainingRun, start: Pair, *, num_rounds: int | None = None
) -> tuple[Pair, list[RoundRow]]:
    """The best pair and the table. Half-rounds that `rounds.jsonl` has are not trained again. Raises: R2Error."""
    config = run.config.alternate
    state = await _opened(run, start)
    print_rounds(run.console, state.rows)
    modules = [
        module
        for _ in range(config.num_rounds if num_rounds is None else num_rounds)
        for module in config.order
    ]
    for number, module in enumerate(modules, 1):
        if number < len(state.rows):
            continue
        if _num_without_gain(state.rows) >= config.patience:
            run.console.print(f"stopped: {config.patience} half-rounds without gain")
            break
        state.record(await state.half_round(number, module))
        print_rounds(run.console, state.rows)
    return state.pair, state.rows


async def half_round(run: TrainingRun, module: Module) -> list[RoundRow]:
    """One more half-round on top of what the run has, or of its SFT pair; the whole table."""
    state = await _opened(run, run.sft_pair())
    state.record(await state.half_round(len(state.rows), module))
    return state.rows


async def _opened(run: TrainingRun, start: Pair) -> Alternation:
    """Where the run stands; measured at the start if it has no table yet."""
    reference = await run.reference(start)
    state = Alternation(run, start, reference, list(read_jsonl(run.directory / ROUNDS, RoundRow)))
    if not state.rows:
        run.keep_best(start)
        state.record(RoundRow(half_round=0, is_kept=True, score=await run.validate(start, reference)))
    state.pair = {module: run.directory / "best" / module for module in start}
    return state


def print_rounds(console: Console, rows: Sequence[RoundRow]) -> None:
    table = Table(title="validation, after each half-round")
    for heading in ("", "trained", "kept", "right", "workers", "total", "path", "steps"):
        table.add_column(heading, justify="left" if heading in ("trained", "kept") else "right")
    for row in rows:
        score = row.score
        table.add_row(
            str(row.half_round),
            row.module or "SFT",
            row.checkpoint if row.is_kept else "no gain",
            f"{100 * score.accuracy:.1f} %",
            f"{100 * score.worker_cost_ratio:.2f} %",
            f"{100 * score.total_cost_ratio:.2f} %",
            f"{score.critical_path_ratio:.2f}",
            f"{score.mean_subtasks:.2f}",
        )
    console.print(table)


def _num_without_gain(rows: Sequence[RoundRow]) -> int:
    return next((i for i, row in enumerate(reversed(rows)) if row.is_kept), len(rows))


def _other(module: Module) -> Module:
    return "allocator" if module == "decomposer" else "decomposer"
