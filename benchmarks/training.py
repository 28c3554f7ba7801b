"""Experiments on a finished `r2-train retrain` run: the effect of one choice, all others being equal.

    python benchmarks/training.py scale-rewards runs/retrain/words-0
    python benchmarks/training.py wide-plans runs/retrain/words-0
    python benchmarks/training.py recover runs/retrain/words-0
    python benchmarks/training.py recover runs/retrain/everyday-0 --model lists-33k

- scale-rewards: GRPO with and without the division by the group's standard deviation.
- wide-plans: GRPO with the critical-path term, from a decomposer without a preference.
- recover: a model is gone or its price changed, and the allocator is retrained.

Each experiment starts from the checkpoints and the data of that run and trains into `--out`. It measures on
validation tasks during training and on held-out tasks after it, and writes its table as JSON. CPU seconds are
those of this process.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from dag import figures, r2, read_graphs, replay
from recovery import Recovery, table_of
from rich.console import Console
from rich.table import Table

from r2_serve.lab.domains import words
from r2_serve.lab.evaluation.benchmarks import NUM_PROBLEMS, load_tasks, sample_tasks
from r2_serve.types import Plan
from r2_train.config import Module, TrainConfig, load_config
from r2_train.retrain import DOMAINS, TESTS, test
from r2_train.rollouts.progress import map_all
from r2_train.run import Pair, TrainingRun
from r2_train.stages.alternate import alternate
from r2_train.stages.measure import RouterScore
from r2_train.tiny.tiny_data import DomainName

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
Row = dict[str, Any]

SourceArgument = Annotated[
    Path, typer.Argument(help="Directory of one finished seed, such as runs/retrain/words-0.")
]
OutOption = Annotated[Path, typer.Option(help="Directory of the experiment's runs and its table.")]
TasksOption = Annotated[int, typer.Option(min=1, help="Number of held-out tasks.")]


@app.command("scale-rewards")
def scale_rewards(
    source: SourceArgument,
    out: OutOption = Path("runs/experiments/scale-rewards"),
    num_test: TasksOption = 1000,
) -> None:
    """Train the allocator twice from the same SFT checkpoints.

    One half-round divides advantages by the group's standard deviation, the other does not.
    """
    rows = []
    for value in ("none", "group"):
        config = _one_half_round(load_config(source / "config.yaml"), "allocator", {"scale_rewards": value})
        rows.append(
            _trained(
                config,
                out / f"{source.name}-{value}",
                _pair(source, "sft"),
                num_test,
                name=f"scale_rewards {value}",
            )
        )
    _show(rows, out / f"{source.name}.json")


@app.command("wide-plans")
def wide_plans(
    source: SourceArgument,
    out: OutOption = Path("runs/experiments/wide-plans"),
    weight: Annotated[float, typer.Option(help="Weight of the critical path in the reward.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Number of GRPO steps.")] = 120,
    num_test: TasksOption = 1000,
) -> None:
    """Train the decomposer with the critical-path term, from the base that writes chains and trees alike."""
    config = load_config(source / "config.yaml")
    reward = config.decomposer.grpo.reward.model_copy(update={"critical_path": weight})
    start: Pair = {
        "decomposer": source / "pretrain" / f"{_domain(config)}-decomposer",
        "allocator": source / "best" / "allocator",
    }
    trainer = {"max_steps": steps, "save_steps": max(1, steps // 4), "learning_rate": 5e-4}
    changed = _one_half_round(config, "decomposer", trainer, reward=reward)
    changed = changed.model_copy(
        update={"alternate": changed.alternate.model_copy(update={"path_weight": weight})}
    )
    run, directory = TrainingRun(changed, out / source.name, console), out / source.name
    rows = [
        _measured(run, start, num_test, name="before") | asyncio.run(_shapes(run, start, num_test, "before"))
    ]
    trained = _trained(changed, directory, start, num_test, name="after")
    rows.append(trained | asyncio.run(_shapes(run, _pair(directory, "best"), num_test, "after")))
    _show(rows, out / f"{source.name}.json", "trees", "makespan_s", "makespan_over_path")


@app.command()
def recover(
    source: SourceArgument,
    out: OutOption = Path("runs/experiments/recover"),
    gone: Annotated[str, typer.Option(help="words: the model that is removed.")] = "words-5k",
    dear: Annotated[str, typer.Option(help="words: the model whose price rises.")] = "words-22k",
    price: Annotated[float, typer.Option(help="words: its new price in USD per 1M tokens.")] = 0.4,
    model: Annotated[
        list[str] | None, typer.Option(help="everyday: a model that gets dear, goes and comes; repeatable.")
    ] = None,
    num_test: TasksOption = 1000,
) -> None:
    """Measure the trained router on a changed pool, and retrain its allocator alone for that pool.

    One pool lacks a model; in the other a model has a new price. An everyday run, whose allocator reads
    prices and skills, is also refitted in seconds, and meets a model that it did not know.
    """
    config, start, rows = load_config(source / "config.yaml"), _pair(source, "best"), []
    if _domain(config) == "everyday":
        asyncio.run(_recover_everyday(config, source, out, model or ["arithmetic-33k"], num_test))
        return
    rows.append(
        _measured(TrainingRun(config, out / f"{source.name}-before", console), start, num_test, name="before")
    )
    changes: dict[str, Row] = {
        f"without {gone}": {"without": (gone,)},
        f"{dear} at {price:g}": {"prices": {dear: Decimal(str(price))}},
    }
    for label, change in changes.items():
        pool = config.pool.model_copy(update=change)
        changed = _one_half_round(config.model_copy(update={"pool": pool}), "allocator", {})
        directory = out / f"{source.name}-{label.replace(' ', '-')}"
        rows.append(
            _measured(TrainingRun(changed, directory, console), start, num_test, name=f"{label}, as it was")
        )
        rows.append(_allocator_anew(changed, source, directory, start, num_test, name=f"{label}, retrained"))
    _show(rows, out / f"{source.name}.json")


async def _recover_everyday(
    config: TrainConfig, source: Path, out: Path, models: list[str], num_test: int
) -> None:
    recovery = await Recovery.of(config, source, out / source.name, num_test, console)
    rows = []
    for model in models:
        rows += await recovery.rows(model)
        _write([row.model_dump() for row in rows], out / f"{source.name}.json")
    Console(width=max(console.width, 140)).print(table_of(rows))


def _one_half_round(config: TrainConfig, module: Module, trainer: dict[str, Any], **grpo: Any) -> TrainConfig:
    """The configuration with one half-round of `module`, and some settings of its trainer changed."""
    own = config.module(module)
    changed = own.grpo.model_copy(update={"trainer": {**own.grpo.trainer, **trainer}, **grpo})
    alternation = config.alternate.model_copy(update={"order": (module,), "num_rounds": 1})
    return config.model_copy(
        update={module: own.model_copy(update={"grpo": changed}), "alternate": alternation}
    )


def _allocator_anew(
    config: TrainConfig, source: Path, directory: Path, start: Pair, num_test: int, *, name: str
) -> Row:
    """Search, SFT and one half-round of GRPO on the changed pool, with plans and calls of the source run."""
    for folder in ("collect", "calls"):
        shutil.copytree(source / folder, directory / folder, dirs_exist_ok=True)
    run, started_s = TrainingRun(config, directory, console), time.process_time()
    asyncio.run(run.search())
    fresh: Pair = {"decomposer": start["decomposer"], "allocator": run.sft("allocator")}
    seconds = time.process_time() - started_s
    row = _trained(config, directory, fresh, num_test, name=name)
    return row | {"cpu_seconds": round(row["cpu_seconds"] + seconds, 1)}


def _trained(config: TrainConfig, directory: Path, start: Pair, num_test: int, *, name: str) -> Row:
    run, started_s = TrainingRun(config, directory, console), time.process_time()
    pair, _ = asyncio.run(alternate(run, start))
    seconds = time.process_time() - started_s
    return {**_measured(run, pair, num_test, name=name), "cpu_seconds": round(seconds, 1)}


def _measured(run: TrainingRun, pair: Pair, num_test: int, *, name: str) -> Row:
    domain = _domain(run.config)
    score: RouterScore = asyncio.run(test(run, pair, domain, TESTS[domain][0], num_test))
    return {"name": name, **score.model_dump()}


async def _shapes(run: TrainingRun, pair: Pair, num_test: int, name: str) -> Row:
    """Shapes of the pair's plans for held-out tasks.

    Returns the share of trees among the sums that can be one, and the mean makespan in seconds of the plans,
    replayed through the real pipeline over models of 50 to 100 ms.
    """
    domain = _domain(run.config)
    tasks = sample_tasks(load_tasks(domain, TESTS[domain][0]), num_test)
    async with run.pool(pair) as pool:
        rollouts = await map_all(
            tasks, lambda task: pool.run(f"plan-{task.id}", task.query), num_at_once=pool.num_at_once
        )
    plans = {
        task.id: rollout.plan
        for task, rollout in zip(tasks, rollouts, strict=True)
        if rollout.plan is not None
    }
    path = run.directory / f"graphs-{name}.jsonl"
    path.write_text("".join(json.dumps(_graph(plan)) + "\n" for plan in plans.values()))
    graphs, _ = read_graphs(path, None, seed=0)
    measured = figures(await replay([(r2, graph) for graph in graphs], 8, lambda: None))
    return {
        "trees": _share_of_trees(plans),
        "makespan_s": round(measured["makespan_s_sum"] / len(graphs), 4),
        "makespan_over_path": measured["makespan_over_critical_path"],
    }


def _share_of_trees(plans: dict[str, Plan]) -> float:
    """The share of word problems planned as a tree, among those planned in one of the two styles."""
    styles = {task.id: task.plans for task in words.tasks("test", NUM_PROBLEMS) if len(task.plans) > 1}
    written = [
        plan == styles[task_id][0]
        for task_id, plan in plans.items()
        if task_id in styles and plan in styles[task_id]
    ]
    return sum(written) / max(1, len(written))


def _graph(plan: Plan) -> dict[str, object]:
    edges = [[dependency, subtask.id] for subtask in plan.subtasks for dependency in subtask.depends_on]
    return {"num_steps": len(plan.subtasks), "edges": edges}


def _pair(source: Path, kind: str) -> Pair:
    if kind == "best":
        return {"decomposer": source / "best" / "decomposer", "allocator": source / "best" / "allocator"}
    return {
        "decomposer": source / "decomposer" / "sft" / "final",
        "allocator": source / "allocator" / "sft" / "final",
    }


def _domain(config: TrainConfig) -> DomainName:
    return next(domain for domain in DOMAINS if domain == config.data.benchmark)


def _show(rows: list[Row], path: Path, *more: str) -> None:
    table = Table("", "right", "workers", "total", "path", "steps", "depth", "CPU s", *more)
    for row in rows:
        ratios = [f"{100 * row[key]:.1f} %" for key in ("accuracy", "worker_cost_ratio", "total_cost_ratio")]
        shape = [f"{row[key]:.2f}" for key in ("critical_path_ratio", "mean_subtasks", "mean_depth")]
        table.add_row(
            row["name"],
            *ratios,
            *shape,
            str(row.get("cpu_seconds", "")),
            *(f"{row[key]:.3f}" for key in more),
        )
    Console(width=max(console.width, 120)).print(table)
    _write(rows, path)


def _write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"written: {path}")


if __name__ == "__main__":
    app()
