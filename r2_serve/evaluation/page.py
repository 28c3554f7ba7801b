"""The report as one HTML page that needs nothing else: no script, no font, no request. Texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from r2_serve.evaluation import report_cells as cells
from r2_serve.evaluation.plots import models_plot, pareto_plot
from r2_serve.evaluation.policies import R2
from r2_serve.evaluation.report import RunReport

_CSS = """
:root { color-scheme: light dark; --text: #1b2530; --soft: #55606b; --line: #d9dfe5; --strong: #9aa5b1; --ours: #fbeeec; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #9aa6b2; --line: #313a44; --strong: #5b6673; --ours: #43251f; --page: #15191e; }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 3rem; border-top: 2px solid var(--text); padding-top: .8rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { border-bottom: 2px solid var(--strong); } th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.ours { font-weight: 600; background: var(--ours); } tr.beaten { color: var(--soft); }
svg { width: 100%; min-width: 720px; height: auto; } p.note { margin: .3rem 0; } .small { color: var(--soft); font-size: 12px; }
"""


def page(reports: Sequence[RunReport]) -> str:
    """All runs, one section each, and where there are several a table of them."""
    sections = "\n".join(_section(report, f"run-{i}") for i, report in enumerate(reports, 1))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>R2 evaluation</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body><h1>R2 evaluation</h1>\n{_overview(reports)}{sections}\n</body></html>\n"
    )


def _overview(reports: Sequence[RunReport]) -> str:
    if len(reports) < 2:
        return ""
    rows = "\n".join(f"<tr>{_overview_cells(report, f'run-{i}')}</tr>" for i, report in enumerate(reports, 1))
    head = "".join(f"<th>{escape(name)}</th>" for name in cells.OVERVIEW_COLUMNS)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n'


def _overview_cells(report: RunReport, anchor: str) -> str:
    name, *figures = cells.overview_row(report)
    return f'<td><a href="#{anchor}">{escape(name)}</a></td>' + "".join(f"<td>{escape(text)}</td>" for text in figures)


def _section(report: RunReport, anchor: str) -> str:
    manifest = report.manifest
    where = manifest.endpoint or "in one process"
    origin = (
        f"{report.directory}; {where}; code {manifest.code_version}; config {manifest.config_sha256[:12]}; data {manifest.data_sha256[:12]}"
    )
    return "\n".join(
        [
            f'<h2 id="{anchor}">{escape(cells.title(report))}</h2>',
            f'<p class="small">{escape(origin)}; prices: {escape(manifest.prices_as_of or "undated")}</p>',
            *(f'<p class="note">{escape(note)}</p>' for note in cells.notes(report)),
            "<h3>Accuracy against cost</h3>",
            f'<div class="scroll">{pareto_plot(report)}</div>',
            "<h3>Policies</h3>",
            *_policies(report),
            *_comparisons(report),
            "<h3>Models</h3>",
            f'<div class="scroll">{models_plot(report)}</div>',
            _table(cells.MODEL_COLUMNS, ((row, "") for row in cells.model_rows(report)), texts=("model",)),
        ]
    )


def _policies(report: RunReport) -> list[str]:
    styles = ["ours" if policy.policy == R2 else "" if policy.policy in report.pareto else "beaten" for policy in report.policies]
    accuracy = [cells.accuracy_cells(policy, report) for policy in report.policies]
    usage = [cells.usage_cells(policy) for policy in report.policies]
    return [
        _table(cells.ACCURACY_COLUMNS, zip(accuracy, styles, strict=True), texts=("not correct",)),
        '<p class="small">Grey: another policy is at least as accurate and cheaper in total.</p>',
        _table(cells.USAGE_COLUMNS, zip(usage, styles, strict=True)),
    ]


def _comparisons(report: RunReport) -> list[str]:
    if not report.comparisons:
        return []
    return ["<h3>r2 against each baseline</h3>", _table(cells.COMPARISON_COLUMNS, ((row, "") for row in cells.comparison_rows(report)))]


def _table(columns: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], texts: Sequence[str] = ()) -> str:
    kinds = ['class="text"' if column in texts else "" for column in columns]
    head = "".join(f"<th {kind}>{escape(column)}</th>" for column, kind in zip(columns, kinds, strict=True))
    body = "\n".join(f'<tr class="{style}">{_cells(row, kinds)}</tr>' for row, style in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cells(row: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(f"<td {kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
