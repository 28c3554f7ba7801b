"""The command `r2-serve ladder`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from r2_serve import EMBEDDED, EMBEDDED_CONFIG
from r2_serve.ops.command_line import plain_errors


def ladder(
    tasks: Annotated[int, typer.Option(min=1, help="Held-out problems.")] = 1000,
    development: Annotated[
        int, typer.Option(min=1, help="Problems on which the baselines are tuned.")
    ] = 1000,
    pairs: Annotated[
        Path,
        typer.Option(
            help="Directory with seed-N/decomposer and seed-N/allocator.", show_default="the shipped pairs"
        ),
    ] = EMBEDDED / "everyday",
    out: Annotated[Path, typer.Option(help="Where summary.json goes.")] = Path("runs/ladder"),
) -> None:
    """What choosing a model for each step buys: the trained everyday routers against tuned baselines.

    It trains nothing and calls no server: nine shipped workers answer every step once.

    \b
    Example:  r2-serve ladder --tasks 200 --development 200
    """
    from rich.console import Console

    from r2_serve.lab.ladder.run import study, write_summary
    from r2_serve.serve_config import load

    console = Console(markup=False)
    with plain_errors():
        served = load(EMBEDDED_CONFIG)
        found = asyncio.run(study(served, pairs, console, num_test=tasks, num_development=development))
    typer.echo(f"written: {write_summary(found, out)}")
