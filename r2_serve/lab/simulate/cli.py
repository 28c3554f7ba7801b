"""`r2-serve simulate`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.lab.examples import chosen_file
from r2_serve.ops.command_line import (
    ExampleOption,
    SeedOption,
    SetAsideOption,
    WorkloadArgument,
    plain_errors,
)

if TYPE_CHECKING:
    from rich.console import Console

    from r2_serve.lab.load.summary import LoadSummary
    from r2_serve.lab.simulate.results import SimulatedRun


def simulate(
    workload: WorkloadArgument = None,
    example: ExampleOption = None,
    config: Annotated[
        str, typer.Option("--config", "-c", help="Serve config; `scripted`: the config of the examples.")
    ] = "scripted",
    hardware: Annotated[
        Path | None,
        typer.Option(
            help="Speeds, GPU prices, cluster, overheads (YAML); default: scripted speeds, no overheads."
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
        typer.Option(help="Directory of a real run of the same workload (`r2-serve load`) to compare with."),
    ] = None,
) -> None:
    """Simulate a deployment under a workload: latency, cost and replicas, without the machines.

    The command takes the same two files as a real run. A third holds what a config does not say: speeds of
    real models, prices, nodes.

    \b
    Example:  r2-serve simulate --example on-off
              r2-serve simulate mine.yaml --config serve_config.yaml --hardware hardware.yaml
              r2-serve simulate mine.yaml --compare runs/load/mine
    """
    from rich.console import Console

    from r2_serve.lab.load.progress import print_summary
    from r2_serve.lab.load.run_directory import claim
    from r2_serve.lab.load.summary import RunInfo
    from r2_serve.lab.simulate.hardware import Hardware, load_hardware
    from r2_serve.lab.simulate.simulation import SimulationOptions
    from r2_serve.lab.simulate.simulation import simulate as simulated
    from r2_serve.lab.workload import EXAMPLES, SCRIPTED_POOL, load_workload
    from r2_serve.serve_config import load as load_config

    console = Console(markup=False)
    with plain_errors():
        loaded = load_workload(chosen_file(workload, example, EXAMPLES))
        config_path = SCRIPTED_POOL if config == "scripted" else Path(config)
        serve_config = load_config(config_path, with_imports=True)
        machines = load_hardware(hardware) if hardware is not None else Hardware()
        directory = out or Path("runs/simulate") / loaded.name
        claim(directory, set_aside=set_aside)
        with console.status("simulating") as status:

            def show(simulated_s: float, num_came: int, num_ended: int) -> None:
                status.update(
                    f"simulated {simulated_s:,.0f} s: {num_came:,} queries came, {num_ended:,} ended"
                )

            run = simulated(serve_config, loaded, machines, SimulationOptions(seed), progress=show)
        price = machines.cluster.gpu_usd_per_hour
        info = RunInfo.of(loaded, "simulated", seed=seed, gpu_usd_per_hour=price)
        summary = run.write(directory, info, has_rows=not no_rows)
        print_summary(summary, console)
        _print_speed(run, console)
        typer.echo(f"written: {directory}")
        if compare is not None:
            _print_comparison(compare, summary, console)


def _print_speed(run: SimulatedRun, console: Console) -> None:
    facts, num_subtasks = run.facts, max(1, run.facts.num_subtasks)
    console.print(
        f"simulated {run.duration_s:,.0f} s with {facts.num_subtasks:,} subtasks in {facts.wall_s:,.1f} s "
        f"({facts.wall_s / num_subtasks * 1e6:.0f} us and {facts.num_events / num_subtasks:.1f} events each)",
        highlight=False,
    )


def _print_comparison(directory: Path, simulated: LoadSummary, console: Console) -> None:
    from r2_serve.lab.reports.terminal import figures_table
    from r2_serve.lab.simulate.compare import compare, read_summary

    rows = (
        (
            row.name,
            f"{row.real:.3f}",
            f"{row.simulated:.3f}",
            "" if row.error is None else f"{100 * row.error:+.1f} %",
        )
        for row in compare(read_summary(directory), simulated)
    )
    console.print(figures_table(("figure", "real", "simulated", "error"), rows, title=f"against {directory}"))
