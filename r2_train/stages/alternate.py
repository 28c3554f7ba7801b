"""`r2-train alternate`: freezes one module, trains the other with GRPO, then swaps.

Each half-round gets new data from the newest pair. The allocator is trained on plans that the decomposer now
writes and the largest model carries out correctly, because other plans say nothing about the models; the
decomposer is trained on queries. All checkpoints of a half-round are measured on validation tasks, through
the whole router. The best one is kept if it beats the pair so far.
"""

from __future__ import annotations

import random
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
from r2_train.launch.stage_run import TrainingFailed
from r2_train.provenance import Facts, checkpoint_facts, digest, dumped, pool_facts, set_aside
from r2_train.rollouts.markets import Market, draw_market
from r2_train.rollouts.progress import map_all
from r2_train.run import Pair, TrainingRun
from r2_train.stages.examples import Example, allocation_example, plan_example, write_examples
from r2_train.stages.grpo import GrpoStage, other_module
from r2_train.stages.grpo import run as grpo_stage
from r2_train.stages.measure import RouterScore
from r2_train.stages.model_files import complete_checkpoint, has_final, load_tokenizer
from r2_train.stages.rewards import Reference
from r2_train.stages.tasks import verdict

ROUNDS = "rounds.jsonl"


class RoundRow(Record):
    """The router after a half-round; `half_round` 0 is the router after SFT."""

    half_round: int
    module: Module | None = None
    """The module that was trained."""
    checkpoint: str = ""
    """The best checkpoint of the half-round."""
    is_kept: bool
    """True if it beats the pair so far."""
    num_examples: int = 0
    score: RouterScore
    made_from: str = ""
    """The hash of all that decides the row; empty in rows of earlier versions, which are taken as current."""


@dataclass
class Alternation:
    """The state of one `alternate`: the best pair so far, and the table."""

    run: TrainingRun
    pair: Pair
    reference: Reference
    rows: list[RoundRow] = field(default_factory=list)

    @property
    def best(self) -> RoundRow:
        return [row for row in self.rows if row.is_kept][-1]

    def facts(self, module: Module | None) -> Facts:
        """What decides the next row: the pair so far, and the settings of the module that is trained."""
        config = self.run.config
        return {
            "grpo": dumped(config.module(module).grpo) if module else None,
            "pool": pool_facts(self.run.described, with_prices=True),
            "data": dumped(config.data),
            "reference": dumped(self.reference),
            "weights": [config.alternate.cost_weight, config.alternate.path_weight],
            "pair": {name: checkpoint_facts(path) for name, path in self.pair.items()},
            "seed": config.seed,
        }

    def folder(self, number: int, module: Module) -> Path:
        return self.run.directory / "rounds" / f"{number:02d}-{module}"

    def replay(self, start: Pair, rows: Sequence[RoundRow]) -> None:
        """Takes over `rows` as far as the present settings made them, and sets the others aside."""
        self.pair = start
        for row in rows:
            if row.made_from not in ("", digest(self.facts(row.module))):
                break
            self.rows.append(row)
            if row.is_kept and row.module is not None:
                self.pair = {
                    **self.pair,
                    row.module: self.folder(row.half_round, row.module) / row.checkpoint,
                }
        stale = rows[len(self.rows) :]
        if not stale:
            return
        self.run.console.print(f"half-rounds from {stale[0].half_round} on are made again: settings changed")
        for row in stale:
            if row.module is not None and (path := self.folder(row.half_round, row.module)).exists():
                set_aside(path)
        set_aside(self.run.directory / ROUNDS)
        self._write_rows()
        if self.rows:
            self.run.keep_best(self.pair)

    def _write_rows(self) -> None:
        with JsonlLog(self.run.directory / ROUNDS, rows_per_sync=1) as log:
            for row in self.rows:
                log.append(row)

    def record(self, row: RoundRow) -> None:
        """Adds a row to the table and to `rounds.jsonl`."""
        with JsonlLog(self.run.directory / ROUNDS, rows_per_sync=1) as log:
            log.append(row)
        self.rows.append(row)

    async def half_round(self, number: int, module: Module) -> RoundRow:
        """Trains `module`, measures its checkpoints, and keeps the best one if it beats the pair so far."""
        directory, facts = self.folder(number, module), self.facts(module)
        self.run.provenance.renew(f"rounds/{directory.name}", facts, directory)
        num_examples = self._train(module, directory, await self._examples(module))
        pairs: dict[Path, Pair] = {
            path: {**self.pair, module: path} for path in self._checkpoints(module, directory)
        }
        scores = await self.run.validate(pairs, self.reference)
        weights = self.run.config.alternate
        path = max(scores, key=lambda path: scores[path].value(weights))
        is_better = scores[path].value(weights) > self.best.score.value(weights)
        if is_better:
            self.pair = self.run.keep_best({**self.pair, module: path})
        return RoundRow(
            half_round=number,
            module=module,
            checkpoint=path.name,
            is_kept=is_better,
            num_examples=num_examples,
            score=scores[path],
            made_from=digest(facts),
        )

    def _train(self, module: Module, directory: Path, examples: Sequence[Example]) -> int:
        """Trains unless `directory` has a finished stage; the number of examples."""
        config = self.run.config
        grpo = config.module(module).grpo
        used = examples[: grpo.num_prompts]
        stage = GrpoStage(
            module=module,
            base=str(self.pair[module]),
            examples=write_examples(directory / "examples.jsonl", used),
            grpo=grpo,
            pool=config.pool,
            data=config.data,
            partner=self.pair[other_module(module)],
            reference=self.reference,
            cache=self.run.directory / "calls",
            max_cost_usd=config.max_cost_usd,
            seed=config.seed,
        )
        if not has_final(directory):
            launch(grpo_stage, stage, launch=config.launch, directory=directory)
            self._report_stop(directory)
        return len(used)

    def _report_stop(self, directory: Path) -> None:
        """Says why the stage stopped early. Raises: TrainingFailed if it has no result."""
        from r2_train.stages.flat_rewards import read_stopped

        stopped = read_stopped(directory)
        if stopped is not None and stopped.is_hopeless:
            raise TrainingFailed(f"{directory} stopped at step {stopped.step}: {stopped.reason}")
        if stopped is not None:
            self.run.console.print(f"converged at step {stopped.step}: {stopped.reason}")

    async def _examples(self, module: Module) -> list[Example]:
        train, grader, described = self.run.tasks.train, Grader(), self.run.described
        if module == "decomposer":
            return [plan_example(described, task.id, task.query) for task in train]
        async with self.run.pool(self.pair) as pool:
            rollouts = await map_all(
                train,
                lambda task: pool.run(f"plan-{task.id}", task.query, policy=f"all:{pool.largest}"),
                num_at_once=pool.num_at_once,
            )
            return [
                allocation_example(described, task.id, task.query, rollout.plan, market=self._market(task.id))
                for task, rollout in zip(train, rollouts, strict=True)
                if rollout.plan is not None and await verdict(grader, task, rollout)
            ]

    def _market(self, task_id: str) -> Market | None:
        """A market for every second task, where the run trains on markets."""
        rng = random.Random(f"market/{self.run.config.seed}/{len(self.rows)}/{task_id}")
        if self.run.config.markets == 0 or rng.random() < 0.5:
            return None
        return draw_market(self.run.described.cards, rng)

    def _checkpoints(self, module: Module, directory: Path) -> list[Path]:
        """The checkpoints that the trainer saved on the way, made ready for serving, and the last one."""
        tokenizer = load_tokenizer(str(self.pair[module]))
        paths = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
        for path in paths:
            complete_checkpoint(path, tokenizer)
        return [*paths, directory / "final"]


async def alternate(
    run: TrainingRun, start: Pair, *, num_rounds: int | None = None
) -> tuple[Pair, list[RoundRow]]:
    """The best pair and the table. Half-rounds in `rounds.jsonl` are not trained again. Raises: R2Error."""
    config = run.config.alternate
    state = await _opened(run, start)
    print_rounds(run.console, state.rows)
    modules = config.order * (config.num_rounds if num_rounds is None else num_rounds)
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
    """Adds one half-round to what the run has, or to its SFT pair. Returns the whole table."""
    state = await _opened(run, run.sft_pair())
    state.record(await state.half_round(len(state.rows), module))
    return state.rows


async def _opened(run: TrainingRun, start: Pair) -> Alternation:
    """The state of the run. If it has no table yet, `start` is measured first."""
    state = Alternation(run, start, await run.reference(start))
    state.replay(start, list(read_jsonl(run.directory / ROUNDS, RoundRow)))
    if not state.rows:
        run.keep_best(start)
        made_from = digest(state.facts(None))
        score = (await run.validate({run.directory: start}, state.reference))[run.directory]
        state.record(RoundRow(half_round=0, is_kept=True, score=score, made_from=made_from))
    state.pair = {module: run.directory / "best" / module for module in start}
    return state


def print_rounds(console: Console, rows: Sequence[RoundRow]) -> None:
    table = Table(title="validation, after each half-round")
    for heading in ("", "trained", "kept", "right", "workers", "total", "path", "steps"):
        table.add_column(heading, justify="left" if heading in ("trained", "kept") else "right")
    for row in rows:
        score = row.score
        ratios = (score.worker_cost_ratio, score.total_cost_ratio)
        table.add_row(
            str(row.half_round),
            row.module or "SFT",
            row.checkpoint if row.is_kept else "no gain",
            f"{100 * score.accuracy:.1f} %",
            *(f"{100 * ratio:.2f} %" for ratio in ratios),
            *(f"{number:.2f}" for number in (score.critical_path_ratio, score.mean_subtasks)),
        )
    console.print(table)


def _num_without_gain(rows: Sequence[RoundRow]) -> int:
    return next((i for i, row in enumerate(reversed(rows)) if row.is_kept), len(rows))
