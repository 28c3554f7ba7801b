"""Trains the embedded models from random weights: the workers of a pool, then its decomposer and its allocator.

Supervised learning only; what reinforcement learning adds is the trainer's business, which starts from a decomposer that
writes plans of every style. One CPU thread is enough. The order matters once: an allocator's labels are solve rates of the
trained workers. Each model is written as a
Hugging Face checkpoint, and what made it is written to `manifest.json` beside them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from transformers.utils.logging import disable_progress_bar

from r2_serve.lab.domains import Task, scan, words
from r2_train.tiny.chain_of_thought import chain_examples, evaluate_chain
from r2_train.tiny.evaluate_pool import (
    MANIFEST,
    MAX_ANSWER_TOKENS,
    SPLITS,
    evaluate_router,
    exact_plan_rate,
    held_out_tasks,
    report_json,
)
from r2_train.tiny.solve_rates import Rates, cheapest, choose_target, scan_rates, words_rates
from r2_train.tiny.tiny_data import (
    CODEC,
    MAX_OPERAND,
    DomainName,
    Styles,
    allocation_example,
    calculation_example,
    data_sha256,
    plan_examples,
    pool_cards,
    query_examples,
    scan_worker_examples,
    solved_steps,
    vocabulary,
    words_plan_examples,
    words_worker_examples,
)
from r2_train.tiny.tiny_models import Example, Schedule, Shape, TinyModel, train

NUM_PLAN_TASKS = 40_000
NUM_CHAIN_TASKS = 60_000
NUM_CALCULATIONS = 240_000
NUM_LABELLED_TASKS = 4_000
NUM_VALIDATION_TASKS = 600
NUM_RESAMPLES = 16
NUM_METRIC_TASKS = 1_000


@dataclass(frozen=True)
class Recipe:
    """One model to train."""

    name: str
    role: Literal["worker", "decomposer", "allocator", "baseline"]
    shape: Shape
    schedule: Schedule
    max_operand: int = MAX_OPERAND
    """Of a words worker's examples."""


RECIPES: dict[DomainName, tuple[Recipe, ...]] = {
    "words": (
        Recipe("words-5k", "worker", Shape(16, 2, 4, 32), Schedule(3500, 2048, 1e-2), max_operand=99),
        Recipe("words-22k", "worker", Shape(32, 2, 4, 64), Schedule(4500, 2048, 8e-3)),
        Recipe("words-48k", "worker", Shape(48, 2, 4, 96), Schedule(3500, 2048, 7e-3)),
        Recipe("words-280k", "worker", Shape(96, 3, 3, 192), Schedule(3500, 2048, 3e-3)),
        Recipe(
            "words-decomposer", "decomposer", Shape(32, 2, 2, 48), Schedule(3000, 4096, 1e-2, num_parts=2)
        ),
        Recipe("words-allocator", "allocator", Shape(16, 2, 2, 32), Schedule(1000, 4096, 8e-3)),
        Recipe(
            "words-cot",
            "baseline",
            Shape(96, 4, 4, 192),
            Schedule(1500, 4096, 3e-3, muon_learning_rate=0.02, num_parts=2),
        ),
    ),
    "scan": (
        Recipe("scan-1k", "worker", Shape(8, 1, 2, 16), Schedule(1500, 2048, 5e-3)),
        Recipe("scan-3k", "worker", Shape(16, 1, 2, 32), Schedule(1500, 2048, 5e-3)),
        Recipe("scan-22k", "worker", Shape(32, 2, 4, 64), Schedule(1500, 2048, 4e-3)),
        Recipe("scan-168k", "worker", Shape(64, 4, 2, 128), Schedule(2000, 2048, 2e-3)),
        Recipe(
            "scan-decomposer",
            "decomposer",
            Shape(32, 2, 2, 32),
            Schedule(1200, 4096, 1e-2, muon_learning_rate=0.02),
        ),
        Recipe("scan-allocator", "allocator", Shape(16, 1, 2, 16), Schedule(500, 2048, 1e-2)),
    ),
}
"""Workers are in the pool's order, smallest first. A baseline is trained when it is named, not with the others."""


@dataclass(frozen=True)
class Run:
    """Where checkpoints go, and what every model of one invocation shares."""

    domain: DomainName
    out: Path
    seed: int = 0
    steps_scale: float = 1.0
    styles: Styles = "mixed"

    @property
    def pool(self) -> list[str]:
        return [recipe.name for recipe in RECIPES[self.domain] if recipe.role == "worker"]

    def workers(self) -> list[TinyModel]:
        return [TinyModel.load(self.out / name) for name in self.pool]


def pretrain(
    domain: DomainName,
    out: Path,
    *,
    seed: int = 0,
    only: str | None = None,
    steps_scale: float = 1.0,
    styles: Styles = "mixed",
) -> None:
    """Trains the models of a domain, or the one called `only`, and records each in the manifest.

    Raises: ValueError where the domain has no model of that name.
    """
    run = Run(domain, out, seed, steps_scale, styles)
    recipes = [
        recipe
        for recipe in RECIPES[domain]
        if recipe.name == only or (only is None and recipe.role != "baseline")
    ]
    if not recipes:
        raise ValueError(
            f"{domain} has no model {only!r}; it has {[recipe.name for recipe in RECIPES[domain]]}"
        )
    out.mkdir(parents=True, exist_ok=True)
    for recipe in recipes:
        _train_one(run, recipe)
    if recipes[-1].role == "allocator":
        evaluate(domain, out, num_tasks=NUM_METRIC_TASKS)


def evaluate(domain: DomainName, out: Path, *, num_tasks: int) -> None:
    """Prints the routed results on every held-out split and records them in the manifest."""
    torch.set_num_threads(1)
    reports = [report_json(evaluate_router(domain, out, num_tasks, split)) for split in SPLITS[domain]]
    _record(out, "routed", domain, reports)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="r2-train pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--domain", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="train this model alone")
    parser.add_argument("--steps-scale", type=float, default=1.0)
    parser.add_argument("--styles", choices=get_args(Styles), default="mixed")
    parser.add_argument(
        "--evaluate", type=int, metavar="NUM_TASKS", help="train nothing, measure the checkpoints of --out"
    )
    args = parser.parse_args(argv)
    disable_progress_bar()
    if args.evaluate:
        evaluate(args.domain, args.out, num_tasks=args.evaluate)
    else:
        pretrain(
            args.domain,
            args.out,
            seed=args.seed,
            only=args.only,
            steps_scale=args.steps_scale,
            styles=args.styles,
        )


def _train_one(run: Run, recipe: Recipe) -> None:
    started = time.process_time()
    examples = _examples(run, recipe)
    words_known = vocabulary(examples)
    if recipe.role == "allocator":
        words_known = sorted({*words_known, *_allocator_words(run)})
    schedule = replace(recipe.schedule, steps=max(1, round(recipe.schedule.steps * run.steps_scale)))
    tiny = TinyModel.create(recipe.name, recipe.shape, words_known, run.seed)
    print(
        f"{recipe.name}: {tiny.num_params:,} parameters, {len(examples):,} examples, {schedule.steps} steps",
        flush=True,
    )
    train(tiny, examples, schedule, run.seed)
    tiny.save(run.out)
    metrics = _metrics(run, recipe, tiny, examples)
    print(f"{recipe.name}: {metrics}", flush=True)
    changed = "" if run.steps_scale == 1 else f" --steps-scale {run.steps_scale:g}"
    if recipe.role == "decomposer":
        changed += f" --styles {run.styles}"
    entry = {
        "role": recipe.role,
        "params": tiny.num_params,
        "seed": run.seed,
        "command": f"r2-train pretrain --domain {run.domain} --only {recipe.name} --seed {run.seed}{changed} --out DIR",
        "steps": schedule.steps,
        "cpu_seconds": round(time.process_time() - started),
        "data_sha256": data_sha256(examples),
        "num_examples": len(examples),
        "codec": CODEC.name,
        "codec_version": CODEC.version,
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
    _record(run.out, "models", recipe.name, entry)
    _record(run.out, "pools", run.domain, run.pool)


def _examples(run: Run, recipe: Recipe) -> list[Example]:
    if recipe.role == "allocator":
        return _allocator_examples(run)
    if recipe.role == "decomposer":
        if run.domain == "words":
            return words_plan_examples(NUM_PLAN_TASKS, run.seed, run.styles)
        return plan_examples(scan.tasks("train", run.seed), run.styles)
    if recipe.role == "baseline":
        return chain_examples(NUM_CHAIN_TASKS, run.seed)
    if run.domain == "words":
        return words_worker_examples(NUM_CALCULATIONS, run.seed, max_operand=recipe.max_operand)
    return scan_worker_examples(run.seed)


def _allocator_examples(run: Run) -> list[Example]:
    """Reference plans of train tasks, labelled by solve rates; the target is chosen on tasks that are then not trained on."""
    tasks, rates = _rated_tasks(run, run.workers())
    target = choose_target(
        tasks[:NUM_VALIDATION_TASKS],
        rates[:NUM_VALIDATION_TASKS],
        run.workers(),
        max_tokens=MAX_ANSWER_TOKENS[run.domain],
    )
    print(f"{run.domain}: solve-rate target {target}", flush=True)
    pool = pool_cards(run.pool)
    return [
        allocation_example(task.query, task.reference_plan, cheapest(rows, target, run.pool), pool)
        for task, rows in zip(tasks[NUM_VALIDATION_TASKS:], rates[NUM_VALIDATION_TASKS:], strict=True)
    ]


def _allocator_words(run: Run) -> set[str]:
    """What plans of any style may show it, and every choice: reinforcement learning brings it plans that its labels lack."""
    tasks = (
        words.tasks("train", NUM_METRIC_TASKS, run.seed)
        if run.domain == "words"
        else scan.tasks("train", run.seed)
    )
    prompts = {
        CODEC.render_allocate(task.query, plan, [])[0].content for task in tasks for plan in task.plans
    }
    return {word for prompt in prompts for word in prompt.split()} | {
        f"@{i}" for i in range(1, len(run.pool) + 1)
    }


def _rated_tasks(run: Run, workers: Sequence[TinyModel]) -> tuple[list[Task], list[Rates]]:
    if run.domain == "scan":
        tasks = list(scan.tasks("train", run.seed))[::2]
        return tasks, scan_rates(tasks, workers)
    problems = words.problems("train", NUM_LABELLED_TASKS, run.seed)
    rates = words_rates(problems, workers, num_resamples=NUM_RESAMPLES, seed=run.seed)
    return words.tasks("train", NUM_LABELLED_TASKS, run.seed), rates


def _metrics(run: Run, recipe: Recipe, tiny: TinyModel, examples: Sequence[Example]) -> dict[str, float]:
    """Exact-match rates: on held-out tasks, but for an allocator agreement with (a sample of) its own labels."""
    if recipe.role == "allocator":
        return {"label_agreement": _rate(tiny, examples[:NUM_METRIC_TASKS])}
    if recipe.role == "baseline":
        return asdict(evaluate_chain(tiny, run.out, NUM_METRIC_TASKS, run.seed))
    tests = {
        split: held_out_tasks(run.domain, split, NUM_METRIC_TASKS, run.seed) for split in SPLITS[run.domain]
    }
    if recipe.role == "decomposer":
        return {f"exact_plan_{split}": exact_plan_rate(tiny, tasks) for split, tasks in tests.items()}
    metrics = {f"whole_{split}": _rate(tiny, query_examples(tasks)) for split, tasks in tests.items()}
    if run.domain == "scan":
        phrases = [
            Task(id=p, query=p, gold=scan.interpret(p), reference_plan=scan.reference_plan(p))
            for p in scan.phrases()
        ]
        return metrics | {"phrase": _rate(tiny, query_examples(phrases))}
    steps = sorted({step for task in tests["test"] for step in solved_steps(task.reference_plan)})
    for name, op in {"add": "+", "subtract": "-", "multiply": "*"}.items():
        metrics[name] = _rate(tiny, [calculation_example(step) for step in steps if f" {op} " in step])
    return metrics


def _rate(tiny: TinyModel, examples: Sequence[Example]) -> float:
    return sum(tiny.solves(examples)) / len(examples)


def _record(out: Path, section: str, name: str, entry: object) -> None:
    path = out / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest.setdefault(section, {})[name] = entry
    path.write_text(
        json.dumps({key: manifest[key] for key in ("pools", "models", "routed") if key in manifest}, indent=2)
        + "\n"
    )


if __name__ == "__main__":
    main()
