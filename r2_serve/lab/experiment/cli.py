"""`r2-serve experiment`. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.ops.command_line import RESUMES, ExampleOption, plain_errors


def experiment(
    file: Annotated[Path | None, typer.Argument(help="Experiment file (YAML).")] = None,
    example: ExampleOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Directory; default: runs/experiment/NAME. An unfinished one goes on."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Endpoint of a running cluster, with its /v1; default: local clusters.")
    ] = None,
    dashboard: Annotated[
        str | None, typer.Option(help="Ray dashboard of that cluster: variants are deployed through it.")
    ] = None,
    set_aside: Annotated[
        bool, typer.Option("--set-aside", help="Run again what another config, workload or code left there.")
    ] = False,
) -> None:
    """Put the same load on variants of a Serve config, over seeds, and compare what each reached with what it took.

    Locally, each run starts a cluster of its own. With --url and --dashboard, each variant is deployed to that cluster.

    \b
    Example:  r2-serve experiment --example list
              r2-serve experiment --example plan-ahead
              r2-serve experiment mine.yaml --out runs/experiment/mine
              r2-serve experiment mine.yaml --url http://HEAD:8000/v1 --dashboard http://HEAD:8265
    """
    import signal

    from rich.console import Console

    from r2_serve.errors import ConfigError
    from r2_serve.lab.experiment.config import load_experiment
    from r2_serve.lab.experiment.session import REPORT, RESULTS, run_experiment
    from r2_serve.serve_config.document import suggestion

    names = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
    if example == "list":
        typer.echo("\n".join(names))
        return
    with plain_errors(interrupted=RESUMES):
        if (file is None) == (example is None):
            raise ConfigError("give an experiment file, or --example NAME (--example list names them)")
        if example is not None and example not in names:
            raise ConfigError(f"no example experiment {example!r}{suggestion(example, names)}")
        if (url is None) != (dashboard is None):
            raise ConfigError(
                "a running cluster needs both --url, which is loaded, and --dashboard, through which variants are deployed"
            )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in order too
        loaded = load_experiment(EXAMPLES / f"{example}.yaml" if example is not None else file or Path())
        directory = out or Path("runs/experiment") / loaded.experiment.name
        run_experiment(loaded, directory, Console(), url=url, dashboard=dashboard, set_aside=set_aside)
    typer.echo(f"written: {directory / RESULTS}, {directory / REPORT}")


EXAMPLES = Path(__file__).parent / "examples"
