"""One experiment from end to end: plan, run what is not done, and write what there is, also when interrupted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.files import write_whole
from r2_serve.lab.experiment import tables
from r2_serve.lab.experiment.cells import Plan, plan
from r2_serve.lab.experiment.clusters import ClusterSite, LocalSite, Site
from r2_serve.lab.experiment.config import Loaded
from r2_serve.lab.experiment.results import Results, differences_of, figures_of, rows_of
from r2_serve.lab.experiment.runner import run_cells, to_run
from r2_serve.lab.load.run_directory import read_timeline
from r2_serve.lab.runs import code_version, machine_line

RESULTS, REPORT = "results.json", "report.html"
_WIDEST = 1_000


def run_experiment(
    loaded: Loaded,
    out: Path,
    console: Console,
    *,
    url: str | None = None,
    dashboard: str | None = None,
    set_aside: bool = False,
) -> Results:
    """Raises: ConfigError, CellFailed, PublishError, RunError; KeyboardInterrupt. What is done is reported all the same."""
    planned = plan(loaded, out, url or LocalSite.target)
    site: Site = LocalSite(loaded.experiment)
    if url is not None and dashboard is not None:
        site = ClusterSite(loaded.experiment, planned, url, Dashboard(dashboard))
    waiting = to_run(planned.cells, set_aside=set_aside)
    console.print(
        f"{len(planned.cells)} runs, {len(planned.cells) - len(waiting)} of them done already",
        highlight=False,
    )
    try:
        run_cells(waiting, len(planned.cells), site, loaded.experiment, console)
    finally:
        results = write_results(loaded, planned, out, site.target)
        print_results(results, console)
    return results


def write_results(loaded: Loaded, planned: Plan, out: Path, target: str) -> Results:
    """`results.json`, and `report.html` where matplotlib is installed."""
    scaled = planned.scaled
    done = [
        (cell, summary)
        for cell in planned.cells
        if not cell.is_other() and (summary := cell.summary()) is not None
    ]
    cells = tuple(
        figures_of(cell, summary, scaled, str(cell.directory.relative_to(out))) for cell, summary in done
    )
    results = Results(
        name=loaded.experiment.name,
        target=target,
        machine=machine_line(),
        code_version=code_version(),
        num_cells=len(planned.cells),
        scaled=scaled,
        cells=cells,
        rows=rows_of(cells),
        differences=differences_of(cells, next(iter(loaded.experiment.variants))),
    )
    write_whole(out / RESULTS, results.model_dump_json(indent=2))
    with suppress(ImportError):
        from r2_serve.lab.experiment.page import page

        seed = loaded.experiment.seeds[0]
        timelines = {
            name: {
                cell.variant: list(read_timeline(cell.directory))
                for cell, _ in done
                if cell.workload.name == name and cell.seed == seed
            }
            for name in loaded.workloads
        }
        write_whole(out / REPORT, page(results, {name: own for name, own in timelines.items() if own}))
    return results


def print_results(results: Results, console: Console) -> None:
    """The tables."""
    if not results.rows:
        return
    _print(console, _table(tables.ROW_COLUMNS, [tables.row_cells(row) for row in results.rows]))
    if results.differences:
        _print(
            console,
            _table(
                tables.DIFFERENCE_COLUMNS,
                [tables.difference_cells(difference) for difference in results.differences],
            ),
        )


def _print(console: Console, table: Table) -> None:
    """Whole, also where the terminal or the log is narrower."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    Console(file=console.file, width=max(console.width, needed)).print(table)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
