"""The command `r2-train`: the training pipeline, with one command per stage.

Each command imports torch and TRL only if it needs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from r2_serve import EMBEDDED
from r2_serve.ops.command_line import RESUMES, plain_errors, replace_unprintable_characters
from r2_train.fetch_smollm2 import fetch_smollm2
from r2_train.fit_cli import fit

if TYPE_CHECKING:
    from r2_serve.types import Record
    from r2_train.run import TrainingRun
    from r2_train.stages.collect import CollectSummary

app = typer.Typer(
    help="Train routers: collect plans, search allocations, SFT, alternating GRPO; or pretrain tiny models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Example: r2-train retrain --domain scan --out runs/retrain",
)
app.command()(fit)
app.command()(fetch_smollm2)
T = TypeVar("T")


class Domain(StrEnum):
    """The generated domains."""

    everyday = "everyday"
    words = "words"
    scan = "scan"
    all = "all"


class Styles(StrEnum):
    """The plans that a decomposer is trained on."""

    mixed = "mixed"
    reference = "reference"


class ModuleName(StrEnum):
    """The module that is trained."""

    decomposer = "decomposer"
    allocator = "allocator"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Run description, such as r2_train/configs/embedded-scan.yaml; default: that of the last one, "
        "OUT/config.yaml.",
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Run directory; an unfinished run in it goes on.")
]
ModuleOption = Annotated[ModuleName, typer.Option("--module", help="decomposer or allocator.")]


@app.callback()
def _at_start() -> None:
    """Makes the output of every command fit any terminal."""
    replace_unprintable_characters()


@app.command()
def plan(
    config: Annotated[Path, typer.Option("--config", "-c", help="Run description.")],
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of each worker's GPU; default: launch.gpu_memory_gib.")
    ] = None,
) -> None:
    """Compute what each stage will hold on a GPU, before anything starts. It fails if a stage does not fit.

    \b
    Example:  r2-train plan -c r2_train/configs/reference-7b.yaml
              r2-train plan -c r2_train/configs/reference-7b.yaml --gpu-memory 48
    """
    from rich.console import Console

    from r2_train.config import MODULES, load_config
    from r2_train.memory import memory_table, plan_of
    from r2_train.run import base_of

    loaded = _guarded(lambda: load_config(config))
    card_gib = gpu_memory or loaded.launch.gpu_memory_gib
    loaded = loaded.model_copy(
        update={"launch": loaded.launch.model_copy(update={"gpu_memory_gib": card_gib})}
    )
    stages = _guarded(lambda: plan_of(loaded, {module: base_of(loaded, module) for module in MODULES}))
    Console(markup=False).print(memory_table(stages, card_gib))
    faults = [fault for stage in stages for fault in stage.faults(card_gib)]
    for fault in faults:
        typer.echo(fault)
    if faults:
        raise typer.Exit(1)


@app.command()
def collect(
    out: OutOption,
    config: ConfigOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Tasks in place of the config's: a file of your own."),
    ] = None,
    benchmark: Annotated[
        str, typer.Option("--benchmark", "-b", help="What --data holds; qa is JSONL of question and answer.")
    ] = "qa",
    grader: Annotated[
        str | None,
        typer.Option(
            "--grader",
            "-g",
            help="The judge of --data where its rows name none: math, number, choice, text, literal or "
            "MODULE:NAME.",
        ),
    ] = None,
    from_traces: Annotated[
        Path | None,
        typer.Option(help="Tasks in place of --data: served queries of this directory, and their feedback."),
    ] = None,
) -> None:
    """Sample plans for every task, run and grade them on the pool, keep the best correct one.

    With --data the later commands need no --config: they read OUT/config.yaml.

    \b
    Example:  r2-train collect -c r2_train/configs/embedded-scan.yaml -o runs/scan
              r2-train collect -c mine.yaml -d mine.jsonl --grader number -o runs/mine
              r2-train collect -c mine.yaml --from-traces /var/r2/traces --grader number -o runs/served
    """
    from r2_train.stages.served_tasks import write_served_tasks

    def work() -> CollectSummary:
        if from_traces is not None:
            file = write_served_tasks(out / "served.jsonl", from_traces, grader)
            own: dict[str, str | None] | None = {"benchmark": "qa", "data": str(file), "grader": grader}
            return asyncio.run(_run(config, out, own).collect())
        own = None if data is None else {"benchmark": benchmark, "data": data, "grader": grader}
        return asyncio.run(_run(config, out, own).collect())

    _show(_guarded(work))


@app.command()
def search(out: OutOption, config: ConfigOption = None) -> None:
    """Find the cheapest correct allocation of every plan that `collect` kept.

    \b
    Example:  r2-train search -c r2_train/configs/embedded-scan.yaml -o runs/scan
    """
    _show(_guarded(lambda: asyncio.run(_run(config, out).search())))


@app.command()
def prompts(
    out: OutOption,
    file: Annotated[Path, typer.Argument(help="YAML file for `prompts:` of the virtual model.")],
    examples: Annotated[int, typer.Option(min=1, help="Number of questions with their plans.")] = 3,
    config: ConfigOption = None,
) -> None:
    """Write few-shot examples from what `collect` and `search` found, for `prompts:` of the virtual model.

    \b
    Example:  r2-train prompts prompts-0001.yaml --examples 3 -o runs/mine
    """
    from r2_train.stages.few_shot import write_prompts

    written = _guarded(lambda: write_prompts(_run(config, out), file, examples))
    typer.echo(f"written: {file}, version {written.sha256[:12]}. Now: prompts: {file} in the virtual model")


@app.command()
def sft(out: OutOption, module: ModuleOption, config: ConfigOption = None) -> None:
    """Fine-tune a module on what `collect` (decomposer) or `search` (allocator) found.

    \b
    Example:  r2-train sft --module allocator -c r2_train/configs/embedded-scan.yaml -o runs/scan
    """
    path = _guarded(lambda: _run(config, out).sft(module.value))
    typer.echo(f"written: {path}")


@app.command()
def grpo(out: OutOption, module: ModuleOption, config: ConfigOption = None) -> None:
    """One half-round: train a module against the newest pair, measure its checkpoints, keep the best.

    \b
    Example:  r2-train grpo --module allocator -c r2_train/configs/embedded-scan.yaml -o runs/scan
    """
    from r2_train.stages.alternate import half_round, print_rounds

    run = _guarded(lambda: _run(config, out))
    rows = _guarded(lambda: asyncio.run(half_round(run, module.value)))
    print_rounds(run.console, rows)
    _draw(out)


@app.command()
def alternate(
    out: OutOption,
    config: ConfigOption = None,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds of two half-rounds each; default: the config's.")
    ] = None,
) -> None:
    """Freeze one module, train the other, swap; the best pair by validation goes to OUT/best.

    \b
    Example:  r2-train alternate --rounds 2 -c r2_train/configs/embedded-scan.yaml -o runs/scan
    """
    from r2_train.stages.alternate import alternate as alternation

    run = _guarded(lambda: _run(config, out))
    pair, _ = _guarded(lambda: asyncio.run(alternation(run, run.sft_pair(), num_rounds=rounds)))
    _draw(out)
    for name, path in pair.items():
        typer.echo(f"best {name}: {path}")


@app.command()
def adapter(
    out: OutOption,
    module: ModuleOption,
    name: Annotated[str, typer.Option(help="Name of the adapter. Never reuse one: engines cache by name.")],
    config: ConfigOption = None,
    parent: Annotated[Path, typer.Option(help="Folder that gets the adapter's directory.")] = Path(
        "adapters"
    ),
) -> None:
    """Write the best module of a run as an adapter with its manifest, for `r2-serve publish`.

    \b
    Example:  r2-train adapter --module allocator --name alloc-0002 -c r2_train/configs/embedded-scan.yaml -o
    runs/scan
              r2-serve publish adapters/alloc-0002 --config serve_config.yaml
    """
    from r2_train.publish import write_module

    path = _guarded(lambda: write_module(_run(config, out), module.value, name, parent))
    typer.echo(f"written: {path}. Now: r2-serve publish {path} --config serve_config.yaml")


@app.command()
def retrain(
    domain: Annotated[
        Domain,
        typer.Option(
            help="everyday: problems that need different skills; words: arithmetic word problems; "
            "scan: SCAN commands."
        ),
    ] = Domain.all,
    out: OutOption = Path("runs/retrain"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs per domain, seeds 0, 1, ...")] = 1,
    num_test: Annotated[int, typer.Option(min=1, help="Held-out tasks per split.")] = 1000,
    ship: Annotated[
        int | None, typer.Option(min=0, help="Seed whose checkpoints then replace the shipped ones.")
    ] = None,
) -> None:
    """Train the embedded routers from nothing: pretrain, collect, search, SFT, alternate, test. It takes
    minutes. Only the everyday router begins with its shipped decomposer.

    \b
    Example:  r2-train retrain --domain scan --seeds 3
    """
    from rich.console import Console

    from r2_train import retrain as pipeline
    from r2_train.tiny import ship as shipping

    domains = pipeline.domains_of(domain.value)
    _guarded(
        lambda: pipeline.retrain(
            domains, out, seeds=range(seeds), console=Console(markup=False), num_test=num_test
        )
    )
    if ship is not None:
        for name in domains:
            for place in _guarded(partial(shipping.ship, out / f"{name}-{ship}", name, ship)):
                typer.echo(f"shipped: {place}")
    typer.echo(f"written: {out / pipeline.SUMMARY}")


@app.command()
def pretrain(
    domain: Annotated[
        Literal["everyday", "words", "scan", "all"],
        typer.Option(help="everyday (needs different skills), words, scan."),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the checkpoints and manifest.json.")],
    seed: Annotated[int, typer.Option(help="Seed of data, weights and order.")] = 0,
    only: Annotated[
        str | None, typer.Option(help="Train this model alone; others are read from --out where needed.")
    ] = None,
    steps_scale: Annotated[
        float, typer.Option(min=0.0001, help="Fraction of the recipe's steps, for a quick look.")
    ] = 1.0,
    styles: Annotated[
        Styles,
        typer.Option(help="Plans of the decomposer: every style (the base of RL) or reference plans alone."),
    ] = Styles.mixed,
    evaluate: Annotated[
        int,
        typer.Option(
            min=0, help="Train nothing: measure the checkpoints of --out on this many held-out tasks."
        ),
    ] = 0,
) -> None:
    """Train the workers, the decomposer and the allocator of a domain from scratch, on one CPU core.

    \b
    Example:  r2-train pretrain --domain scan --out runs/pretrain              about 6 minutes
              r2-train pretrain --domain scan --out runs/pretrain --evaluate 500
              r2-train pretrain --domain words --only words-decomposer --styles reference --out runs/pretrain
    """
    from r2_train.retrain import DOMAINS
    from r2_train.tiny import pretrain as stage

    for name in DOMAINS if domain == "all" else (domain,):
        if evaluate:
            stage.evaluate(name, out, num_tasks=evaluate)
        else:
            stage.pretrain(name, out, seed=seed, only=only, steps_scale=steps_scale, styles=styles.value)


@app.command()
def skills(
    models: Annotated[
        Path,
        typer.Option(
            help="Directory that `r2-train pretrain --domain everyday` wrote.",
            show_default="the shipped models",
        ),
    ] = EMBEDDED,
) -> None:
    """Measure what each everyday worker can do: solve rates on held-out steps of every kind.

    \b
    Example:  r2-train skills --models runs/pretrain
    """
    from rich.console import Console

    from r2_train.tiny.skills import measure_pool, skill_table

    Console(markup=False, width=130).print(skill_table(_guarded(lambda: measure_pool(models))))


def _run(config: Path | None, out: Path, data: Mapping[str, object] | None = None) -> TrainingRun:
    """The run in `out`. `data` replaces the task file of its description. Raises: ConfigError."""
    from pydantic import ValidationError
    from rich.console import Console

    from r2_serve.errors import ConfigError
    from r2_train.config import DataConfig, TasksLater, TrainConfig, load_config
    from r2_train.run import TrainingRun

    loaded = load_config(config or out / "config.yaml", TrainConfig if data is None else TasksLater)
    if data is not None:
        try:
            changed = DataConfig.model_validate({**loaded.data.model_dump(), **data})
        except ValidationError as e:
            raise ConfigError("; ".join(str(error["msg"]) for error in e.errors())) from e
        loaded = loaded.model_copy(update={"data": changed})
    return TrainingRun(loaded, out, Console(markup=False))


def _guarded(work: Callable[[], T]) -> T:
    """The result of `work`. An R2Error ends the command with its message alone."""
    with plain_errors("r2-train", interrupted=RESUMES):
        return work()


def _show(summary: Record) -> None:
    typer.echo(summary.model_dump_json(indent=2))


def _draw(out: Path) -> None:
    from r2_train.stages.curves import draw_curves

    path = draw_curves(out)
    if path is not None:
        typer.echo(f"written: {path}")


if __name__ == "__main__":
    app()
