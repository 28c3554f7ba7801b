"""An experiment's results as tables and as a page with links to the pages of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from rich.console import Console
from rich.table import Table

from r2_serve.lab.experiment.results import CellFigures, PairedDifference, Results, Spread, VariantRow
from r2_serve.lab.load.cells import seconds
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.load.run_directory import REPORT
from r2_serve.lab.reports.terminal import figures_table

Timelines = Mapping[str, Mapping[str, Sequence[TimelineSample]]]
"""Timelines of one seed by workload and variant."""
ROW_COLUMNS = (
    "workload", "variant", "seeds", "in time, %", "p50, s", "p95, s", "replica-s", "GPU $", "model $",
    "failed",
)  # fmt: skip
DIFFERENCE_COLUMNS = ("workload", "variant", "less", "seeds", "in time, points", "p95, s", "replica-s, %")
CELL_COLUMNS = (
    "workload", "variant", "seed", "requests", "in time, %", "p50, s", "p95, s", "replica-s",
    "of it starting", "failed",
)  # fmt: skip
_WIDEST = 1_000


def print_results(results: Results, console: Console) -> None:
    """Prints the tables of rows and differences."""
    rows, differences = map(_row_cells, results.rows), map(_difference_cells, results.differences)
    if results.rows:
        _print(console, figures_table(ROW_COLUMNS, rows, num_texts=2))
    if results.differences:
        _print(console, figures_table(DIFFERENCE_COLUMNS, differences, num_texts=3))


def page(results: Results, timelines: Timelines) -> str:
    """The page of the finished cells."""
    from r2_serve.lab.reports.html import document

    return document(f"Experiment: {results.name}", "\n".join(_sections(results, timelines)))


def _sections(results: Results, timelines: Timelines) -> Iterator[str]:
    from r2_serve.lab.experiment.plots import replicas_plot, trade_plot
    from r2_serve.lab.load.page import note, picture, rows_table, small

    done = f"{len(results.cells)} of {results.num_cells} runs done"
    yield small(f"{results.target}; {results.machine}; code {results.code_version}; {done}")
    if warned := sum(bool(cell.warnings) for cell in results.cells):
        yield note(f"Warning: {warned} runs have warnings; see their pages.")
    yield rows_table(ROW_COLUMNS, map(_row_cells, results.rows), "variant")
    yield small(
        "Means over seeds [lowest, highest]. In time: answered within the objective, of all requests."
    )
    yield small("Replica-seconds: running and starting, of the deployments that scale, until the last reply.")
    if results.differences:
        yield "<h3>Paired differences</h3>"
        differences = map(_difference_cells, results.differences)
        yield rows_table(DIFFERENCE_COLUMNS, differences, "variant", "less")
        yield small("The runs of a pair have the same seed, so the same requests at the same times.")
    variants = list(dict.fromkeys(cell.variant for cell in results.cells))
    for workload, by_variant in timelines.items():
        yield f"<h2>{escape(workload)}</h2>"
        yield picture(trade_plot([cell for cell in results.cells if cell.workload == workload], variants))
        yield picture(replicas_plot(by_variant, results.scaled))
    yield "<h3>Runs</h3>"
    yield rows_table(CELL_COLUMNS, map(_cell_cells, results.cells), "variant")
    yield f'<p class="small">{", ".join(map(_link, results.cells))}</p>'


def _link(cell: CellFigures) -> str:
    name = f"{cell.workload} {cell.variant} {cell.seed}"
    return f'<a href="{escape(cell.directory)}/{REPORT}">{escape(name)}</a>'


def _print(console: Console, table: Table) -> None:
    """Prints the whole table, also if the terminal or the log is narrower."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    Console(markup=False, file=console.file, width=max(console.width, needed)).print(table)


def _row_cells(row: VariantRow) -> tuple[str, ...]:
    return (
        row.workload,
        row.variant,
        str(row.num_seeds),
        _range(row.slo_attainment, 100, 1),
        seconds(row.p50_s.mean if row.p50_s else None),
        seconds(row.p95_s.mean if row.p95_s else None),
        _range(row.replica_s, 1, 0),
        f"{row.gpu_usd.mean:.4f}",
        f"{row.model_usd.mean:.4f}",
        str(row.num_failed),
    )


def _difference_cells(difference: PairedDifference) -> tuple[str, ...]:
    return (
        difference.workload,
        difference.variant,
        difference.against,
        str(difference.num_seeds),
        _range(difference.slo_attainment, 100, 1, sign="+"),
        _range(difference.p95_s, 1, 2, sign="+"),
        _range(difference.replica_s, 100, 1, sign="+"),
    )


def _cell_cells(cell: CellFigures) -> tuple[str, ...]:
    return (
        cell.workload,
        cell.variant,
        str(cell.seed),
        str(cell.num_requests),
        f"{100 * cell.slo_attainment:.1f}",
        seconds(cell.p50_s),
        seconds(cell.p95_s),
        f"{cell.replica_s:.0f}",
        f"{cell.starting_s:.0f}",
        str(cell.num_failed),
    )


def _range(spread: Spread | None, factor: float, digits: int, sign: str = "") -> str:
    if spread is None:
        return "-"
    values = (spread.mean, spread.low, spread.high)
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in values)
    return mean if low == high else f"{mean} [{low}, {high}]"
