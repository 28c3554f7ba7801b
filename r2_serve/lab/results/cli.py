"""`r2-serve runs`. Heavy imports wait for the command that needs them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.lab.evaluation.cli import (
    CsvOption,
    JsonOption,
    LatexOption,
    MarginOption,
    OursOption,
    TheirsOption,
    report_packages,
)
from r2_serve.lab.results.record import Kind, Order, State
from r2_serve.ops.command_line import plain_errors

if TYPE_CHECKING:
    from r2_serve.lab.results.record import FoundRun

runs_app = typer.Typer(help="The results of all runs: list, compare, export, open their pages.")
DirectoryOption = Annotated[Path, typer.Option("--dir", "-d", help="The directory that holds the runs.")]
RUNS = Path("runs")
RunArgument = Annotated[str, typer.Argument(help="A run: its directory, or the end of its path below --dir.")]


@runs_app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    directory: DirectoryOption = RUNS,
    kind: Annotated[Kind | None, typer.Option("--kind", "-k", help="Only runs of this kind.")] = None,
    state: Annotated[State | None, typer.Option(help="Only runs in this state.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only runs that started on that day or later.")
    ] = None,
    words: Annotated[
        str, typer.Option("--match", "-m", help="Text in the path, the task or the figures.")
    ] = "",
    sort: Annotated[
        Order, typer.Option(help="date: the newest first; accuracy: the best; cost: the cheapest.")
    ] = "date",
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
    csv: CsvOption = None,
    latex: LatexOption = None,
) -> None:
    """List the runs below a directory: kind, date, what was run, figures, and how far unfinished ones are.

    \b
    Example:  r2-serve runs
              r2-serve runs --kind eval --sort accuracy --match scan
              r2-serve runs --state unfinished --json
    """
    if context.invoked_subcommand is not None:
        return
    import json

    from rich.console import Console

    from r2_serve.files import write_whole
    from r2_serve.lab.results.finding import find_runs
    from r2_serve.lab.results.listing import Wanted, print_runs, runs_table

    day = since.replace(tzinfo=UTC) if since else None
    with plain_errors():
        search = find_runs(directory)
        runs = Wanted(kind, state, day, words, sort, reverse).of(search.runs)
        table = runs_table(runs)
        for path, text in ((csv, table.csv), (latex, table.latex)):
            if path is not None:
                write_whole(path, text)
    if as_json:
        typer.echo(json.dumps([run.model_dump(mode="json") for run in runs], indent=2))
        return
    print_runs(runs, search.notes, Console(markup=False, highlight=False))


@runs_app.command()
def compare(
    a: RunArgument,
    b: RunArgument,
    directory: DirectoryOption = RUNS,
    policy: OursOption = None,
    other: TheirsOption = None,
    margin: MarginOption = 1.0,
    json_out: JsonOption = None,
    csv: CsvOption = None,
    latex: LatexOption = None,
) -> None:
    """Compare two evaluations task by task, or two loads request by request, with paired tests.

    \b
    Example:  r2-serve runs compare runs/eval/new runs/eval/old
              r2-serve runs compare load/on-off simulate/on-off
    """
    from r2_serve.lab.evaluation.report.export import show_comparison
    from r2_serve.lab.results.comparing import compare as compared

    with report_packages():
        (one, first), (two, second) = _located(a, directory), _located(b, directory)
        found = compared((one, two), (first, second), policy or (), other or (), margin / 100)
        show_comparison(found, json_out, csv, latex)


@runs_app.command()
def export(
    run: RunArgument,
    directory: DirectoryOption = RUNS,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the files; default: tables in the run.")
    ] = None,
) -> None:
    """Write every table of a run's report as CSV, with all numbers, and as LaTeX, as it is printed.

    \b
    Example:  r2-serve runs export eval/scan --out paper/tables
    """
    from r2_serve.lab.reports.export import write_tables
    from r2_serve.lab.results.tables import tables_of

    with report_packages():
        found, path = _located(run, directory)
        inside = path if path.is_dir() else path.with_suffix("")
        written = write_tables(tables_of(found, path), out or inside / "tables")
    typer.echo("\n".join(map(str, written)))


@runs_app.command("open")
def open_pages(
    run: Annotated[
        str | None, typer.Argument(help="The run whose page is named; default: the index.")
    ] = None,
    directory: DirectoryOption = RUNS,
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Loopback port; 0: any.")] = 0,
) -> None:
    """Serve the pages and figures of the runs on loopback, with an index, until ctrl-C; print the address.

    \b
    Example:  r2-serve runs open
              r2-serve runs open eval/scan --port 8080
    """
    import uvicorn

    from r2_serve.lab.results.finding import find_run, find_runs
    from r2_serve.lab.results.serving import page_path, pages_app
    from r2_serve.lab.runs import RunError
    from r2_serve.ops.local.cluster import LOOPBACK, check_port_is_free, free_port

    with plain_errors():
        find_runs(directory)
        place = "/"
        if run is not None:
            pages = find_run(directory, run.removeprefix(f"{directory}/")).pages
            if not pages:
                raise RunError(f"{run} has no page: `r2-serve eval report`, for example, makes one")
            place = page_path(pages[0])
        at = port or free_port()
        check_port_is_free(LOOPBACK, at)
        typer.echo(f"page:   http://{LOOPBACK}:{at}{place}\nstop:   ctrl-C")
        uvicorn.run(pages_app(directory), host=LOOPBACK, port=at, log_level="warning")


def _located(name: str, directory: Path) -> tuple[FoundRun, Path]:
    """A run by its own path, or by its path below `directory`; a directory may hold one run for each seed.

    Raises: RunError.
    """
    from r2_serve.lab.results.finding import find_run, find_runs
    from r2_serve.lab.runs import RunError

    path = Path(name)
    if not path.is_dir():
        root = path.parent if path.is_file() else directory
        found = find_run(root, path.name if path.is_file() else name)
        return found, root / found.path
    runs = find_runs(path).runs
    if len({run.kind for run in runs}) != 1:
        raise RunError(f"{path} holds {'runs of several kinds' if runs else 'no run'}: name one of them")
    return runs[0].model_copy(update={"path": name}), path
