"""Bars that show how far an evaluation is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from r2_serve.lab.evaluation.runner import OnRow, Standing
from r2_serve.lab.reports.terminal import usd


@contextlib.contextmanager
def progress_of(name: str, console: Console, *, is_transient: bool = False) -> Iterator[OnRow]:
    """Show a bar with the standing of a run while it goes."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[standing]}"), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=is_transient) as progress:
        bar = progress.add_task(name, total=None, standing="")

        def show(standing: Standing) -> None:
            correct = f"{100 * standing.num_correct / max(1, standing.num_done):.1f} % correct"
            text = f"{correct}, {standing.num_failed} failed, {usd(standing.cost_usd)}"
            progress.update(bar, total=standing.num_total, completed=standing.num_done, standing=text)

        yield show


@contextlib.contextmanager
def counting(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show a bar that counts up to a total."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
