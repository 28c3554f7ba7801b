"""The evaluation report for a paper: CSV of all numbers, LaTeX tables, and figures as SVG and PDF."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from r2_serve.errors import counted
from r2_serve.files import write_whole
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.compare import (
    COLUMNS,
    RunComparison,
    comparison_cells,
    print_comparison,
)
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.reports.export import ReportTable, csv_text, latex_table, write_figure


def write_csv(path: Path, reports: Sequence[RunReport]) -> None:
    """One line for each policy of each run, with its comparison with r2. Raises: OSError."""
    write_whole(path, csv_text(row for report in reports for row in _csv_rows(report)))


def _csv_rows(report: RunReport) -> Iterator[dict[str, object]]:
    against = {comparison.baseline: comparison for comparison in report.comparisons}
    for policy in report.policies:
        comparison = against.get(policy.policy)
        versus = {} if comparison is None else {f"r2_{k}": v for k, v in dict(comparison).items()}
        yield {"run": report.directory, "benchmark": report.manifest.benchmark, **dict(policy), **versus}


def write_latex(path: Path, reports: Sequence[RunReport]) -> None:
    """Every table that the report prints, run by run. Raises: OSError."""
    write_whole(path, "\n".join(table.latex for report in reports for table in tables(report)))


def tables(report: RunReport) -> Iterator[ReportTable]:
    """What the report of a run prints: its policies, what each used, r2 against each of them, the models."""
    title, policies = cells.title(report), report.policies
    yield ReportTable(
        "policies",
        f"{title}. Cost relative to {report.reference}.",
        cells.ACCURACY_COLUMNS,
        [cells.accuracy_cells(policy, report.reference_report) for policy in policies],
        list(_csv_rows(report)),
    )
    yield ReportTable(
        "usage",
        f"{title}. What each policy used.",
        cells.USAGE_COLUMNS,
        [cells.usage_cells(policy) for policy in policies],
    )
    if report.comparisons:
        yield ReportTable(
            "comparisons",
            f"{title}. r2 against each baseline, on the same tasks.",
            cells.COMPARISON_COLUMNS,
            cells.comparison_rows(report),
            [dict(comparison) for comparison in report.comparisons],
        )
    yield ReportTable(
        "models",
        f"{title}. What each model did.",
        cells.MODEL_COLUMNS,
        cells.model_rows(policies),
        [
            {"policy": policy.policy, "model": name, **use.model_dump(exclude={"usage"}), **dict(use.usage)}
            for policy in policies
            for name, use in policy.models.items()
        ],
    )


def write_figures(directory: Path, reports: Sequence[RunReport]) -> list[Path]:
    """Accuracy against cost, and the use of models, of each run; the paths. Raises: OSError."""
    from r2_serve.lab.evaluation.report.plots import models_figure, pareto_figure

    paths: list[Path] = []
    for report in reports:
        name = re.sub(r"[^A-Za-z0-9]+", "-", f"{report.manifest.benchmark}-{Path(report.directory).name}")
        paths += write_figure(pareto_figure(report), directory, f"{name}-pareto")
        paths += write_figure(models_figure(report), directory, f"{name}-models")
    return paths


def show_comparison(
    found: RunComparison, json_out: Path | None, csv: Path | None, latex: Path | None
) -> None:
    """Print a comparison of two runs, and write it into the files that are named. Raises: OSError."""
    console = Console(markup=False)
    print_comparison(found, console)
    title = f"A: {found.a}; B: {found.b}; {counted(found.num_tasks, 'task')}."
    texts = {
        json_out: found.model_dump_json(indent=2),
        csv: csv_text({"a": found.a, "b": found.b, **dict(row)} for row in found.rows),
        latex: latex_table(COLUMNS, map(comparison_cells, found.rows), title),
    }
    written = [path for path in texts if path is not None]
    for path in written:
        write_whole(path, texts[path])
    if written:
        console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
