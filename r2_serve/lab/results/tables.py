"""Every table of a run, for papers and spreadsheets: those that its report prints.

Kinds without a report of their own here (training, the ladder, the demo) have a table for each list of rows
in their figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from r2_serve.lab.reports.export import ReportTable
from r2_serve.lab.results.kinds import RESULTS, ROUNDS, read_json
from r2_serve.lab.results.record import FoundRun
from r2_serve.lab.runs import RunError


def tables_of(run: FoundRun, path: Path) -> list[ReportTable]:
    """The tables of the run at `path`. Raises: RunError if it is broken or holds none."""
    try:
        found = list(_tables(run, path))
    except (OSError, ValueError, ValidationError) as e:
        raise RunError(f"{path} has no tables: {e}") from e
    if not found:
        raise RunError(f"{path} has no tables yet: it is {run.state} ({run.progress or run.kind})")
    return found


def _tables(run: FoundRun, path: Path) -> Iterator[ReportTable]:
    match run.kind:
        case "eval":
            from r2_serve.lab.evaluation.report.export import tables
            from r2_serve.lab.evaluation.report.figures import report_of

            yield from tables(report_of(path))
        case "load" | "simulate":
            from r2_serve.lab.load.cells import tables as load_tables
            from r2_serve.lab.load.run_directory import RequestFile
            from r2_serve.lab.simulate.compare import read_summary

            yield from load_tables(read_summary(path), RequestFile(path))
        case "experiment":
            from r2_serve.lab.experiment.report import tables as experiment_tables
            from r2_serve.lab.experiment.results import Results

            yield from experiment_tables(Results.model_validate_json((path / RESULTS).read_bytes()))
        case "replay":
            from r2_serve.lab.outcomes.figures import ReplayReport
            from r2_serve.lab.outcomes.page import tables as replay_tables

            yield from replay_tables(ReplayReport.model_validate_json(path.read_bytes()))
        case _:
            yield from _of_json(run, path)


def _of_json(run: FoundRun, path: Path) -> Iterator[ReportTable]:
    from r2_serve.lab.jsonl import whole_lines
    from r2_serve.lab.load.run_directory import SUMMARY

    if (path / SUMMARY).exists():
        yield from lists_of(read_json(path / SUMMARY), run.path)
    if (path / ROUNDS).exists():
        import json

        rounds = [json.loads(line) for line in whole_lines(path / ROUNDS)]
        yield from lists_of({"rounds": rounds}, run.path)


def lists_of(value: Mapping[str, object], title: str, prefix: str = "") -> Iterator[ReportTable]:
    """A table for each list of mappings in `value`, at any depth, named after its keys."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from lists_of(inner, title, f"{name}-")
        elif isinstance(inner, list) and inner and all(isinstance(row, Mapping) for row in inner):
            records = [dict(_flat(row)) for row in inner]
            columns = list(dict.fromkeys(column for record in records for column in record))
            rows = [[_cell(record.get(column)) for column in columns] for record in records]
            yield ReportTable(name, f"{title}: {name}.", columns, rows, records)


def _flat(row: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
