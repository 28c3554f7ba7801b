"""One experiment: plan, run the cells that are not done, write the results, even if interrupted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from rich.console import Console

from r2_serve.cluster.serve_api import Dashboard
from r2_serve.errors import ConfigError, counted
from r2_serve.files import write_whole
from r2_serve.lab.experiment.cells import SIMULATED, ExperimentPlan, plan
from r2_serve.lab.experiment.clusters import ClusterSite, LocalSite, Site
from r2_serve.lab.experiment.config import LoadedExperiment
from r2_serve.lab.experiment.report import page, print_results
from r2_serve.lab.experiment.results import CellFigures, Results, differences_of, rows_of
from r2_serve.lab.experiment.runner import run_cells, simulate_cells, to_run
from r2_serve.lab.load.run_directory import REPORT, read_timeline
from r2_serve.lab.runs import code_version, machine_line

RESULTS = "results.json"


def run_experiment(
    loaded: LoadedExperiment,
    out: Path,
    console: Console,
    *,
    url: str | None = None,
    dashboard: str | None = None,
    set_aside: bool = False,
    is_simulated: bool = False,
) -> Results:
    """Runs an experiment; finished cells are reported even if it ends with an error.

    Raises: ConfigError, CellFailed, ServeApiError, RunError; KeyboardInterrupt.
    """
    target = SIMULATED if is_simulated else url or LocalSite.target
    planned = plan(loaded, out, target)
    if not is_simulated:
        check_is_real(loaded)
    site: Site = LocalSite(loaded.experiment)
    if url is not None and dashboard is not None:
        site = ClusterSite(loaded.experiment, planned, url, Dashboard(dashboard))
    waiting = to_run(planned.cells, set_aside=set_aside)
    num_done = len(planned.cells) - len(waiting)
    console.print(f"{counted(len(planned.cells), 'run')}, done already: {num_done}", highlight=False)
    try:
        if is_simulated:
            simulate_cells(waiting, len(planned.cells), loaded, console)
        else:
            run_cells(waiting, len(planned.cells), site, loaded.experiment, console)
    finally:
        results = write_results(loaded, planned, out, target)
        print_results(results, console)
    return results


def check_is_real(loaded: LoadedExperiment) -> None:
    """Raises: ConfigError for a variant that only a simulation can have."""
    for name, variant in loaded.experiment.variants.items():
        if variant.hardware or variant.forecast != "plans":
            raise ConfigError(f"variant {name!r} changes hardware or forecast: only --simulate can do that")


def write_results(loaded: LoadedExperiment, planned: ExperimentPlan, out: Path, target: str) -> Results:
    """Writes `results.json` and, if matplotlib is installed, `report.html`."""
    known = [(cell, cell.summary()) for cell in planned.cells if not cell.is_other()]
    done = [(cell, summary) for cell, summary in known if summary is not None]
    cells = tuple(
        CellFigures.of(cell, summary, planned.scaled, str(cell.directory.relative_to(out)))
        for cell, summary in done
    )
    results = Results(
        name=loaded.experiment.name,
        target=target,
        machine=machine_line(),
        code_version=code_version(),
        num_cells=len(planned.cells),
        scaled=planned.scaled,
        cells=cells,
        rows=rows_of(cells),
        differences=differences_of(cells, next(iter(loaded.experiment.variants))),
    )
    write_whole(out / RESULTS, results.model_dump_json(indent=2))
    first = [cell for cell, _ in done if cell.seed == loaded.experiment.seeds[0]]
    timelines = {
        name: {
            cell.variant: list(read_timeline(cell.directory)) for cell in first if cell.workload.name == name
        }
        for name in loaded.workloads
    }
    with suppress(ImportError):
        write_whole(out / REPORT, page(results, {name: own for name, own in timelines.items() if own}))
    return results
