"""The display of a run while it goes, and of its figures after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from r2_serve.lab.load import cells
from r2_serve.lab.load.records import LoadRecord, TimelineSample
from r2_serve.lab.load.session import Watcher
from r2_serve.lab.load.summary import Distribution, LoadSummary
from r2_serve.lab.reports.terminal import figures_table, usd

_RECENT = 500


def run_bars(console: Console) -> Progress:
    """Bars over the time of a run with its `standing`, redrawn rarely, as drawing delays sending."""
    standing = TextColumn("{task.fields[standing]}")
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), standing)
    return Progress(*columns, console=console, refresh_per_second=2)


@contextmanager
def progress(name: str, duration_s: float | None, console: Console) -> Iterator[Watcher]:
    """Shows a bar over the time of sending and the latest figures."""
    latencies: deque[float] = deque(maxlen=_RECENT)
    lateness: deque[float] = deque(maxlen=_RECENT)
    with run_bars(console) as bars:
        bar = bars.add_task(name, total=duration_s, standing="")

        def on_end(record: LoadRecord) -> None:
            lateness.append(record.lateness_s)
            if record.outcome == "ok":
                latencies.append(record.latency_s)

        def on_sample(sample: TimelineSample) -> None:
            completed = min(sample.t_s, duration_s or sample.t_s)
            bars.update(bar, completed=completed, standing=_standing(sample, latencies, lateness))

        yield Watcher(on_sample, on_end)


def counts_line(sample: TimelineSample) -> str:
    return f"{sample.num_sent} sent, {sample.num_open} open, {sample.num_failed} failed"


def print_summary(summary: LoadSummary, console: Console) -> None:
    """Prints the figures as tables."""
    console.print(cells.verdict(summary), style="bold", highlight=False)
    figures = Table(box=SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    for row in cells.figure_rows(summary):
        figures.add_row(*row)
    console.print(figures)
    console.print(figures_table(cells.LATENCY_COLUMNS, cells.latency_rows(summary)))
    if summary.deployments:
        console.print(figures_table(cells.DEPLOYMENT_COLUMNS, cells.deployment_rows(summary)))
    if summary.cold_starts:
        console.print(figures_table(cells.START_COLUMNS, cells.start_rows(summary)))
    for warning in summary.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def _standing(sample: TimelineSample, latencies: deque[float], lateness: deque[float]) -> str:
    parts = [counts_line(sample)]
    if (recent := Distribution.of(list(latencies))) is not None:
        parts.append(f"p95 {cells.seconds(recent.p95)} s")
    if (late := Distribution.of(list(lateness))) is not None:
        parts.append(f"late p99 {1000 * late.p99:.0f} ms")
    on_gpus = {name: count for name, count in sample.deployments.items() if count.gpus}
    for name, count in (on_gpus or sample.deployments).items():  # the line is short
        starting = f"+{count.starting}" if count.starting else ""
        parts.append(f"{name.partition('/')[0]} {count.running}{starting}")
    return ", ".join([*parts, usd(sample.spent_usd)])
