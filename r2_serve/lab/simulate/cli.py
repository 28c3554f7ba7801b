"""`r2-serve simulate`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.ops.command_line import (
    ExampleOption,
    SeedOption,
    SetAsideOption,
    WorkloadArgument,
    fail,
    plain_errors,
)

if TYPE_CHECKING:
    from rich.console import Console

    from r2_serve.lab.load.summary import LoadSummary
    from r2_serve.lab.simulate.hardware import Hardware
    from r2_serve.lab.simulate.results import Run
    from r2_serve.lab.workload import Workload
    from r2_serve.serve_config import ServeConfig


def simulate(
    workload: WorkloadArgument = None,
    example: ExampleOption = None,
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", help="Serve config, as for `serve deploy`; `scripted`: that of the examples."
        ),
    ] = "scripted",
    hardware: Annotated[
        Path | None,
        typer.Option(
            "--hardware",
            help="Speeds, GPU prices, cluster, overheads (YAML); default: scripted speeds, no overheads.",
        ),
    ] = None,
    seed: SeedOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run directory; default: runs/simulate/NAME of the workload."),
    ] = None,
    no_rows: Annotated[
        bool, typer.Option("--no-rows", help="Leave out requests.jsonl, which has a line per request.")
    ] = False,
    set_aside: SetAsideOption = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a real run of the same workload (`r2-serve load`): how far apart the two are."
        ),
    ] = None,
) -> None:
    """What a deployment would do under a workload: latency, cost and replicas, without the machines.

    Takes the same two files as a real run; what a config does not say (speeds of real models, prices, nodes) stands in a third.

    \b
    Example:  r2-serve simulate --example on-off
              r2-serve simulate mine.yaml --config serve_config.yaml --hardware hardware.yaml
              r2-serve simulate mine.yaml --compare runs/load/mine
    """
    from rich.console import Console

    from r2_serve.lab.simulate.hardware import Hardware, load_hardware
    from r2_serve.lab.workload import SCRIPTED_POOL, example_names, example_path, load_workload
    from r2_serve.serve_config import load as load_config

    if example == "list":
        typer.echo("\n".join(example_names()))
        return
    if (workload is None) == (example is None):
        fail("give a workload file, or --example NAME (--example list names them)")
    console = Console()
    try:
        with plain_errors():
            loaded = load_workload(example_path(example) if example is not None else workload or Path())
            serve_config = load_config(SCRIPTED_POOL if config == "scripted" else Path(config))
            machines = load_hardware(hardware) if hardware is not None else Hardware()
            directory = out or Path("runs/simulate") / loaded.name
            summary = _run(
                serve_config,
                loaded,
                machines,
                seed,
                directory,
                console,
                has_rows=not no_rows,
                set_aside=set_aside,
            )
            if compare is not None:
                _compare(compare, summary, console)
    except ModuleNotFoundError as e:
        if e.name != "simpy":
            raise
        fail("simulate needs simpy: pip install 'route-and-reason[eval]'")


def _run(
    config: ServeConfig,
    workload: Workload,
    hardware: Hardware,
    seed: int | None,
    directory: Path,
    console: Console,
    *,
    has_rows: bool,
    set_aside: bool,
) -> LoadSummary:
    from r2_serve.lab.load.progress import print_summary
    from r2_serve.lab.load.run_directory import claim
    from r2_serve.lab.simulate.results_files import run_info, write_run
    from r2_serve.lab.simulate.simulation import Options, simulate

    claim(directory, set_aside=set_aside)
    with console.status("simulating") as status:

        def progress(simulated_s: float, num_came: int, num_ended: int) -> None:
            status.update(f"simulated {simulated_s:,.0f} s: {num_came:,} queries came, {num_ended:,} ended")

        run = simulate(config, workload, hardware, Options(seed), progress=progress)
    summary = write_run(
        directory, run_info(workload, seed, hardware), run, hardware=hardware, has_rows=has_rows
    )
    print_summary(summary, console)
    _print_speed(run, console)
    typer.echo(f"written: {directory}")
    return summary


def _print_speed(run: Run, console: Console) -> None:
    per_subtask_us = run.wall_s / max(1, run.num_subtasks) * 1e6
    console.print(
        f"simulated {run.duration_s:,.0f} s with {run.num_subtasks:,} subtasks in {run.wall_s:,.1f} s "
        f"({per_subtask_us:.0f} us and {run.num_events / max(1, run.num_subtasks):.1f} events per subtask)",
        highlight=False,
    )


def _compare(directory: Path, simulated: LoadSummary, console: Console) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from r2_serve.lab.simulate.compare import differences, read_summary

    table = Table(title=f"against {directory}", box=SIMPLE)
    for i, column in enumerate(("figure", "real", "simulated", "error")):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in differences(read_summary(directory), simulated):
        table.add_row(
            row.name,
            f"{row.real:.3f}",
            f"{row.simulated:.3f}",
            "" if row.error is None else f"{100 * row.error:+.1f} %",
        )
    console.print(table)
