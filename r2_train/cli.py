"""`r2-train`: the embedded pool from nothing. Torch is imported by the command that needs it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="R2 training: the tiny models that ship with the package, and soon the router's own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Styles(StrEnum):
    """What plans a decomposer is trained on."""

    mixed = "mixed"
    reference = "reference"


class Domain(StrEnum):
    """The generated domains."""

    words = "words"
    scan = "scan"


@app.callback()
def main() -> None:
    """Keeps `pretrain` a subcommand while it is the only one."""


@app.command()
def pretrain(
    domain: Annotated[Domain, typer.Option(help="words: arithmetic word problems; scan: SCAN commands.")],
    out: Annotated[Path, typer.Option(help="Directory of the checkpoints and manifest.json.")],
    seed: Annotated[int, typer.Option(help="Of data, weights and order.")] = 0,
    only: Annotated[str | None, typer.Option(help="Train this model alone; others are read from --out where needed.")] = None,
    steps_scale: Annotated[float, typer.Option(min=0.0001, help="Fraction of the recipe's steps, for a quick look.")] = 1.0,
    styles: Annotated[
        Styles, typer.Option(help="Plans of the decomposer: every style (the base of RL), or reference plans alone.")
    ] = Styles.mixed,
    evaluate: Annotated[int, typer.Option(min=0, help="Train nothing: measure the checkpoints of --out on this many held-out tasks.")] = 0,
) -> None:
    """Train the workers, the decomposer and the allocator of a domain from scratch, on one CPU core.

    \b
    Example:  r2-train pretrain --domain scan --out runs/pretrain              about 6 minutes
              r2-train pretrain --domain scan --out runs/pretrain --evaluate 500
              r2-train pretrain --domain words --only words-decomposer --styles reference --out runs/pretrain
    """
    from r2_train import pretrain as stage

    if evaluate:
        stage.evaluate(domain.value, out, num_tasks=evaluate)
    else:
        stage.pretrain(domain.value, out, seed=seed, only=only, steps_scale=steps_scale, styles=styles.value)


if __name__ == "__main__":
    app()
