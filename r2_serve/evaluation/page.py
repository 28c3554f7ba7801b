"""The report as one HTML page that needs nothing else: no script, no font, no request. Texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from r2_serve.evaluation import report_cells as cells
from r2_serve.evaluation.plots import models_plot, pareto_plot
from r2_serve.evaluation.policies import R2
from r2_serve.evaluation.report import RunReport

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2530; background: #fff; max-width: 1340px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 2px solid #1b2530; padding-top: .8rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e3e8ed; white-space: nowrap; }
th { border-bottom: 2px solid #9aa5b1; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 9rem; }
tr.ours { font-weight: 600; background: #fbeeec; } tr.beaten { color: #6b7680; }
svg { max-width: 100%; height: auto; } p.note { margin: .3rem 0; } .small { color: #55606b; font-size: 12px; }
"""


def page(reports: Sequence[RunReport]) -> str:
    """All runs, one section each."""
    sections = "\n".join(_section(report) for report in reports)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>R2 evaluation</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body><h1>R2 evaluation</h1>\n{sections}\n</body></html>\n"
    )


def _section(report: RunReport) -> str:
    manifest = report.manifest
    where = manifest.endpoint or "in one process"
    origin = (
        f"{report.directory}; {where}; code {manifest.code_version}; config {manifest.config_sha256[:12]}; data {manifest.data_sha256[:12]}"
    )
    return "\n".join(
        [
            f"<h2>{escape(cells.title(report))}</h2>",
            f'<p class="small">{escape(origin)}; prices: {escape(manifest.prices_as_of or "undated")}</p>',
            *(f'<p class="note">{escape(note)}</p>' for note in cells.notes(report)),
            "<h3>Accuracy against cost</h3>",
            pareto_plot(report),
            "<h3>Policies</h3>",
            _policies(report),
            *_comparisons(report),
            "<h3>Models</h3>",
            models_plot(report),
            _table(cells.MODEL_COLUMNS, ((row, "") for row in cells.model_rows(report)), texts=("model",)),
        ]
    )


def _policies(report: RunReport) -> str:
    def style(name: str) -> str:
        return "ours" if name == R2 else "" if name in report.pareto else "beaten"

    rows = ((cells.policy_cells(policy, report), style(policy.policy)) for policy in report.policies)
    legend = '<p class="small">Grey: another policy is at least as accurate and cheaper in total.</p>'
    return _table(cells.POLICY_COLUMNS, rows, texts=("not correct",)) + legend


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
