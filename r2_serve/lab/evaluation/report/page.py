"""The evaluation report as one self-contained HTML page (`r2_serve.lab.reports.html`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.evaluation.report.plots import pictures
from r2_serve.lab.reports.html import Html, document, note, picture, small, table


def page(reports: Sequence[RunReport]) -> str:
    """All runs, one section each, and where there are several a table of them."""
    sections = [line for i, report in enumerate(reports, 1) for line in _section(report, f"run-{i}")]
    overview = [table(cells.OVERVIEW_COLUMNS, _linked_rows(reports))] if len(reports) > 1 else []
    return document("R2 evaluation", "\n".join([*overview, *sections]))


def _linked_rows(reports: Sequence[RunReport]) -> Iterator[cells.Cells]:
    """The rows of the overview, with links to the sections."""
    for i, report in enumerate(reports, 1):
        name, *figures = cells.overview_row(report)
        yield Html(f'<a href="#run-{i}">{escape(name)}</a>'), *figures


def _section(report: RunReport, anchor: str) -> Iterator[str]:
    manifest, policies = report.manifest, report.policies
    styles = ["ours" if p.policy == R2 else "" if p.policy in report.pareto else "beaten" for p in policies]
    accuracy = (cells.accuracy_cells(policy, report.reference_report) for policy in policies)
    accuracy_against_cost, use_of_models = pictures(report)
    yield f'<h2 id="{anchor}">{escape(cells.title(report))}</h2>'
    yield small(
        f"{report.directory}; {manifest.endpoint or 'in one process'}; code {manifest.code_version}; "
        f"config {manifest.config_sha256[:12]}; data {manifest.data_sha256[:12]}; "
        f"prices: {manifest.prices_as_of or 'undated'}"
    )
    yield from map(note, cells.notes(report))
    yield "<h3>Accuracy against cost</h3>"
    yield picture(accuracy_against_cost)
    yield "<h3>Policies</h3>"
    yield table(cells.ACCURACY_COLUMNS, accuracy, "not correct", styles=styles)
    yield small("Grey: another policy is at least as accurate and cheaper in total.")
    yield table(cells.USAGE_COLUMNS, map(cells.usage_cells, policies), styles=styles)
    if report.comparisons:
        rows = zip(cells.comparison_rows(report), report.comparisons, strict=True)
        yield "<h3>r2 against each baseline</h3>"
        yield table(
            (*cells.COMPARISON_COLUMNS, "API saved"),
            ((*row, cells.saved(found.api_cost_reduction)) for row, found in rows),
        )
    yield "<h3>Models</h3>"
    yield picture(use_of_models)
    yield table(cells.MODEL_COLUMNS, cells.model_rows(policies), "model")
