"""The evaluation report as one self-contained HTML page (`r2_serve.lab.reports.html`)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.evaluation.report.plots import models_plot, pareto_plot
from r2_serve.lab.reports.html import document, table


def page(reports: Sequence[RunReport]) -> str:
    """All runs, one section each, and where there are several a table of them."""
    sections = "\n".join(_section(report, f"run-{i}") for i, report in enumerate(reports, 1))
    return document("R2 evaluation", f"{_overview(reports)}{sections}")


def _overview(reports: Sequence[RunReport]) -> str:
    if len(reports) < 2:
        return ""
    rows = "\n".join(f"<tr>{_overview_cells(report, f'run-{i}')}</tr>" for i, report in enumerate(reports, 1))
    head = "".join(f"<th>{escape(name)}</th>" for name in cells.OVERVIEW_COLUMNS)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n'


def _overview_cells(report: RunReport, anchor: str) -> str:
    name, *figures = cells.overview_row(report)
    return f'<td><a href="#{anchor}">{escape(name)}</a></td>' + "".join(
        f"<td>{escape(text)}</td>" for text in figures
    )


def _section(report: RunReport, anchor: str) -> str:
    manifest = report.manifest
    origin = (
        f"{report.directory}; {manifest.endpoint or 'in one process'}; code {manifest.code_version}; "
        f"config {manifest.config_sha256[:12]}; data {manifest.data_sha256[:12]}; "
        f"prices: {manifest.prices_as_of or 'undated'}"
    )
    return "\n".join(
        [
            f'<h2 id="{anchor}">{escape(cells.title(report))}</h2>',
            f'<p class="small">{escape(origin)}</p>',
            *(f'<p class="note">{escape(note)}</p>' for note in cells.notes(report)),
            "<h3>Accuracy against cost</h3>",
            f'<div class="scroll">{pareto_plot(report)}</div>',
            "<h3>Policies</h3>",
            *_policies(report),
            *_comparisons(report),
            "<h3>Models</h3>",
            f'<div class="scroll">{models_plot(report)}</div>',
            table(
                cells.MODEL_COLUMNS,
                ((row, "") for row in cells.model_rows(report.policies)),
                texts=("model",),
            ),
        ]
    )


def _policies(report: RunReport) -> list[str]:
    styles = [
        "ours" if policy.policy == R2 else "" if policy.policy in report.pareto else "beaten"
        for policy in report.policies
    ]
    accuracy = [cells.accuracy_cells(policy, report.reference_report) for policy in report.policies]
    usage = [cells.usage_cells(policy) for policy in report.policies]
    return [
        table(cells.ACCURACY_COLUMNS, zip(accuracy, styles, strict=True), texts=("not correct",)),
        '<p class="small">Grey: another policy is at least as accurate and cheaper in total.</p>',
        table(cells.USAGE_COLUMNS, zip(usage, styles, strict=True)),
    ]


def _comparisons(report: RunReport) -> list[str]:
    if not report.comparisons:
        return []
    rows = cells.comparison_rows(report)
    return [
        "<h3>r2 against each baseline</h3>",
        table(
            (*cells.COMPARISON_COLUMNS, "API saved"),
            (
                ((*row, cells.saved(c.api_cost_reduction)), "")
                for row, c in zip(rows, report.comparisons, strict=True)
            ),
        ),
    ]
