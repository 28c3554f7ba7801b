"""`r2-serve experiment`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.lab.examples import chosen_file
from r2_serve.ops.command_line import RESUMES, ExampleOption, plain_errors

EXAMPLES = Path(__file__).parent / "examples"


def experiment(
    file: Annotated[Path | None, typer.Argument(help="Experiment file (YAML).")] = None,
    example: ExampleOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Directory, also of an unfinished run; default: runs/experiment/NAME."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Endpoint of a running cluster, with its /v1; default: local clusters.")
    ] = None,
    dashboard: Annotated[
        str | None, typer.Option(help="Ray dashboard of that cluster, through which variants are deployed.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulate every run, on the file's `hardware`: seconds each.")
    ] = False,
    set_aside: Annotated[
        bool,
        typer.Option("--set-aside", help="Repeat runs of another config, workload or code; those are kept."),
    ] = False,
) -> None:
    """Put the same load on variants of a Serve config, over seeds, and compare results and replica time.

    Locally, each run starts its own cluster. With --url and --dashboard, each variant is deployed to that
    cluster. With --simulate, none is needed, and a file may have baselines that no cluster can run.

    \b
    Example:  r2-serve experiment --example list
              r2-serve experiment --example plan-ahead
              r2-serve experiment --example plan-ahead --simulate
              r2-serve experiment mine.yaml --out runs/experiment/mine
              r2-serve experiment mine.yaml --url http://HEAD:8000/v1 --dashboard http://HEAD:8265
    """
    import signal

    from rich.console import Console

    from r2_serve.errors import ConfigError
    from r2_serve.lab.experiment.config import load_experiment
    from r2_serve.lab.experiment.session import RESULTS, run_experiment
    from r2_serve.lab.load.run_directory import REPORT

    with plain_errors(interrupted=RESUMES):
        path = chosen_file(file, example, EXAMPLES)
        if (url is None) != (dashboard is None):
            raise ConfigError("a running cluster needs both --url (for the load) and --dashboard (to deploy)")
        if simulate and url is not None:
            raise ConfigError("--simulate needs no cluster: leave --url and --dashboard out")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order too
        loaded = load_experiment(path)
        directory = out or Path("runs/experiment") / loaded.experiment.name
        run_experiment(
            loaded,
            directory,
            Console(markup=False),
            url=url,
            dashboard=dashboard,
            set_aside=set_aside,
            is_simulated=simulate,
        )
    typer.echo(f"written: {directory / RESULTS}, {directory / REPORT}")
