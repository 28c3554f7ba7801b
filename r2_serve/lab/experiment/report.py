"""An experiment's results as tables and as a page with links to the pages of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from r2_serve.errors import counted
from r2_serve.lab.experiment.results import CellFigures, PairedDifference, Results, Spread, VariantRow
from r2_serve.lab.load.cells import seconds
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.load.run_directory import REPORT
from r2_serve.lab.reports.export import ReportTable, flat
from r2_serve.lab.reports.terminal import figures_table
from r2_serve.types import Record

T = TypeVar("T")
R = TypeVar("R", bound=Record)
Timelines = Mapping[str, Mapping[str, Sequence[TimelineSample]]]
"""Timelines of one seed by workload and variant."""
_WIDEST = 1_000


def _range(spread: Spread | None, factor: float, digits: int, sign: str = "") -> str:
    if spread is None:
        return "-"
    values = (spread.mean, spread.low, spread.high)
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in values)
    return mean if low == high else f"{mean} [{low}, {high}]"


ROW: Mapping[str, Callable[[VariantRow], str]] = {
    "workload": lambda row: row.workload,
    "variant": lambda row: row.variant,
    "seeds": lambda row: str(row.num_seeds),
    "in time, %": lambda row: _range(row.slo_attainment, 100, 1),
    "p50, s": lambda row: _range(row.p50_s, 1, 1),
    "p95, s": lambda row: _range(row.p95_s, 1, 1),
    "replica-s": lambda row: _range(row.replica_s, 1, 0),
    "GPU-s": lambda row: _range(row.gpu_s, 1, 0),
    "node-s": lambda row: _range(row.node_s, 1, 0),
    "GPU $": lambda row: f"{row.gpu_usd.mean:.4f}",
    "model $": lambda row: f"{row.model_usd.mean:.4f}",
    "failed": lambda row: str(row.num_failed),
}
"""Columns of the table of variants, each with its cell."""
DIFFERENCE: Mapping[str, Callable[[PairedDifference], str]] = {
    "workload": lambda difference: difference.workload,
    "variant": lambda difference: difference.variant,
    "less": lambda difference: difference.against,
    "seeds": lambda difference: str(difference.num_seeds),
    "in time, points": lambda difference: _range(difference.slo_attainment, 100, 1, sign="+"),
    "p95, s": lambda difference: _range(difference.p95_s, 1, 2, sign="+"),
    "replica-s, %": lambda difference: _range(difference.replica_s, 100, 1, sign="+"),
    "node-s, %": lambda difference: _range(difference.node_s, 100, 1, sign="+"),
}
CELL: Mapping[str, Callable[[CellFigures], str]] = {
    "workload": lambda cell: cell.workload,
    "variant": lambda cell: cell.variant,
    "seed": lambda cell: str(cell.seed),
    "requests": lambda cell: str(cell.num_requests),
    "in time, %": lambda cell: f"{100 * cell.slo_attainment:.1f}",
    "p50, s": lambda cell: seconds(cell.p50_s),
    "p95, s": lambda cell: seconds(cell.p95_s),
    "replica-s": lambda cell: f"{cell.replica_s:.0f}",
    "of it starting": lambda cell: f"{cell.starting_s:.0f}",
    "failed": lambda cell: str(cell.num_failed),
}


def _cells(columns: Mapping[str, Callable[[T], str]], rows: Iterable[T]) -> Iterator[list[str]]:
    return ([cell(row) for cell in columns.values()] for row in rows)


def print_results(results: Results, console: Console) -> None:
    """Prints the tables of rows and differences."""
    if results.rows:
        _print(console, figures_table(list(ROW), _cells(ROW, results.rows), num_texts=2))
    if results.differences:
        differences = _cells(DIFFERENCE, results.differences)
        _print(console, figures_table(list(DIFFERENCE), differences, num_texts=3))


def tables(results: Results) -> Iterator[ReportTable]:
    """The tables of the page."""
    yield _table(
        "variants", f"{results.name}: means over seeds [95 % interval of the mean].", ROW, results.rows
    )
    if results.differences:
        caption = f"{results.name}: paired differences, seed by seed."
        yield _table("differences", caption, DIFFERENCE, results.differences)
    yield _table("runs", f"{results.name}: each run.", CELL, results.cells)


def _table(
    name: str, caption: str, columns: Mapping[str, Callable[[R], str]], rows: Sequence[R]
) -> ReportTable:
    return ReportTable(name, caption, list(columns), list(_cells(columns, rows)), list(map(flat, rows)))


def page(results: Results, timelines: Timelines) -> str:
    """The page of the finished cells."""
    from r2_serve.lab.reports.html import document

    return document(f"Experiment: {results.name}", "\n".join(_sections(results, timelines)))


def _sections(results: Results, timelines: Timelines) -> Iterator[str]:
    from r2_serve.lab.experiment.plots import replicas_plot, trade_plot
    from r2_serve.lab.reports.html import note, picture, small, table

    done = f"{len(results.cells)} of {results.num_cells} runs done"
    yield small(f"{results.target}; {results.machine}; code {results.code_version}; {done}")
    if warned := sum(bool(cell.warnings) for cell in results.cells):
        yield note(f"Warning: {counted(warned, 'run')} with warnings; see the pages.")
    yield table(list(ROW), _cells(ROW, results.rows), "variant")
    yield small(
        "Means over seeds [95 % interval of the mean]. In time: answered within the objective, of all sent."
    )
    yield small("Replica-seconds: running and starting, of the deployments that scale, until the last reply.")
    yield small("GPU-seconds: held by replicas. Node-seconds: nodes with GPUs, also those that boot or idle.")
    if results.differences:
        yield "<h3>Paired differences</h3>"
        yield table(list(DIFFERENCE), _cells(DIFFERENCE, results.differences), "variant", "less")
        yield small("The runs of a pair have the same seed, so the same requests at the same times.")
    variants = list(dict.fromkeys(cell.variant for cell in results.cells))
    for workload, by_variant in timelines.items():
        yield f"<h2>{escape(workload)}</h2>"
        yield picture(trade_plot([cell for cell in results.cells if cell.workload == workload], variants))
        yield picture(replicas_plot(by_variant, results.scaled))
    yield "<h3>Runs</h3>"
    yield table(list(CELL), _cells(CELL, results.cells), "variant")
    yield f'<p class="small">{", ".join(map(_link, results.cells))}</p>'


def _link(cell: CellFigures) -> str:
    name = f"{cell.workload} {cell.variant} {cell.seed}"
    return f'<a href="{escape(cell.directory)}/{REPORT}">{escape(name)}</a>'


def _print(console: Console, table: Table) -> None:
    """Prints the whole table, also if the terminal or the log is narrower."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    Console(markup=False, file=console.file, width=max(console.width, needed)).print(table)
