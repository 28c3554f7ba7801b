"""The load report as one self-contained HTML page (`r2_serve.lab.reports.html`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from r2_serve.lab.load import cells
from r2_serve.lab.load.plots import latency_plot, timeline_plot
from r2_serve.lab.load.records import RequestRecord, TimelineSample
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.reports.html import document, table


def page(summary: LoadSummary, records: Iterable[RequestRecord], timeline: Sequence[TimelineSample]) -> str:
    """Everything about one run. `records` is read several times and never held: a list, or `RequestFile`."""
    return document(
        f"Load: {summary.info.workload}, seed {summary.info.seed}",
        "\n".join(sections(summary, records, timeline)),
    )


def sections(
    summary: LoadSummary, records: Iterable[RequestRecord], timeline: Sequence[TimelineSample]
) -> list[str]:
    """The page's body."""
    info, slo = summary.info, summary.info.slo
    origin = (
        f"{info.url}; model {info.model}; started {info.started}; code {info.code_version}; {info.machine}"
    )
    return [
        f'<p class="small">{escape(origin)}</p>',
        f"<p><b>{escape(cells.verdict(summary))}</b></p>",
        *(f'<p class="note">Warning: {escape(warning)}.</p>' for warning in summary.warnings),
        "<h3>Over time</h3>",
        f'<div class="scroll">{timeline_plot(records, timeline, slo)}</div>',
        "<h3>Latency</h3>",
        f'<div class="scroll">{latency_plot(records, slo)}</div>',
        table(cells.LATENCY_COLUMNS, ((row, "") for row in cells.latency_rows(summary))),
        '<p class="small">From when a request was to be sent; of those that were answered. The share in the picture is of all.</p>',
        "<h3>Figures</h3>",
        table(("what", "how much"), ((row, "") for row in cells.figure_rows(summary)), texts=("how much",)),
        *_deployments(summary),
        "<h3>Slowest requests</h3>",
        table(cells.SLOWEST_COLUMNS, ((row, "") for row in cells.slowest_rows(records)), texts=("outcome",)),
    ]


def _deployments(summary: LoadSummary) -> list[str]:
    if not summary.deployments:
        return [
            '<p class="note">Nobody was asked for replica counts: give --dashboard, or --config for a local cluster.</p>'
        ]
    note = "Replicas running and starting, integrated over the run through its last reply."
    return [
        "<h3>Replicas</h3>",
        table(cells.DEPLOYMENT_COLUMNS, ((row, "") for row in cells.deployment_rows(summary))),
        f'<p class="small">{note}</p>',
    ]
