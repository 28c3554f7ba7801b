"""What is shown of a run while it goes, and of its figures after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from r2_serve.lab.load import cells
from r2_serve.lab.load.records import ReplicaCount, RequestRecord, TimelineSample
from r2_serve.lab.load.session import Watcher
from r2_serve.lab.load.summary import Distribution, LoadSummary
from r2_serve.lab.reports.terminal import usd

_RECENT = 500


@contextmanager
def progress(name: str, duration_s: float | None, console: Console) -> Iterator[Watcher]:
    """A bar over the time of sending, and how it stands, redrawn a few times a second: drawing takes time from sending."""
    latencies: deque[float] = deque(maxlen=_RECENT)
    lateness: deque[float] = deque(maxlen=_RECENT)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[standing]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=2) as bars:
        bar = bars.add_task(name, total=duration_s, standing="")

        def on_end(record: RequestRecord) -> None:
            lateness.append(record.lateness_s)
            if record.outcome == "ok":
                latencies.append(record.latency_s)

        def on_sample(sample: TimelineSample) -> None:
            bars.update(
                bar,
                completed=min(sample.t_s, duration_s or sample.t_s),
                standing=_standing(sample, latencies, lateness),
            )

        yield Watcher(on_sample, on_end)


def print_summary(summary: LoadSummary, console: Console) -> None:
    """The figures as tables."""
    console.print(cells.verdict(summary), style="bold", highlight=False)
    figures = Table(box=SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    for row in cells.figure_rows(summary):
        figures.add_row(*row)
    console.print(figures)
    console.print(_table(cells.LATENCY_COLUMNS, cells.latency_rows(summary)))
    if summary.deployments:
        console.print(_table(cells.DEPLOYMENT_COLUMNS, cells.deployment_rows(summary)))
    for warning in summary.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def _standing(sample: TimelineSample, latencies: deque[float], lateness: deque[float]) -> str:
    parts = [f"{sample.num_sent} sent", f"{sample.num_open} open", f"{sample.num_failed} failed"]
    if (recent := Distribution.of(list(latencies))) is not None:
        parts.append(f"p95 {cells.seconds(recent.p95)} s")
    if (late := Distribution.of(list(lateness))) is not None:
        parts.append(f"late p99 {1000 * late.p99:.0f} ms")
    parts.append(usd(sample.spent_usd))
    parts += [
        f"{name.partition('/')[0]} {c.running}" + f"+{c.starting}" * bool(c.starting)
        for name, c in _shown(sample)
    ]
    return ", ".join(parts)


def _shown(sample: TimelineSample) -> list[tuple[str, ReplicaCount]]:
    """Those on GPUs, where there are any: the line is short."""
    return [item for item in sample.deployments.items() if item[1].gpus] or list(sample.deployments.items())


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
