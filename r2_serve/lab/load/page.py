"""The load report as one self-contained HTML page (`r2_serve.lab.reports.html`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from r2_serve.lab.load import cells
from r2_serve.lab.load.plots import latency_plot, timeline_plot
from r2_serve.lab.load.records import LoadRecord, TimelineSample
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.reports.html import document, note, picture, small, table


def page(summary: LoadSummary, records: Iterable[LoadRecord], timeline: Sequence[TimelineSample]) -> str:
    """The whole report. It reads `records` several times: give a list, or `RequestFile`."""
    title = f"Load: {summary.info.workload}, seed {summary.info.seed}"
    return document(title, "\n".join(_sections(summary, records, timeline)))


def _sections(
    summary: LoadSummary, records: Iterable[LoadRecord], timeline: Sequence[TimelineSample]
) -> Iterator[str]:
    info, slo = summary.info, summary.info.slo
    yield small(
        f"{info.url}; model {info.model}; started {info.started}; code {info.code_version}; {info.machine}"
    )
    yield f"<p><b>{escape(cells.verdict(summary))}</b></p>"
    yield from (note(f"Warning: {warning}.") for warning in summary.warnings)
    yield "<h3>Over time</h3>"
    yield picture(timeline_plot(records, timeline, slo))
    yield "<h3>Latency</h3>"
    yield picture(latency_plot(records, slo))
    yield table(cells.LATENCY_COLUMNS, cells.latency_rows(summary))
    yield small(
        "Times count from the intended start, of answered requests. The share in the picture is of all."
    )
    yield "<h3>Figures</h3>"
    yield table(("figure", "value"), cells.figure_rows(summary), "value")
    if summary.deployments:
        yield "<h3>Replicas</h3>"
        yield table(cells.DEPLOYMENT_COLUMNS, cells.deployment_rows(summary))
        yield small("Replicas running and starting, integrated over the run until its last reply.")
    else:
        yield note("Replicas were not counted: give --dashboard, or --config for a local cluster.")
    if summary.cold_starts:
        yield "<h3>Cold starts</h3>"
        yield table(cells.START_COLUMNS, cells.start_rows(summary))
        yield small(
            "Medians in seconds. On a node: from the request for a replica to its service, without the node."
        )
    yield "<h3>Slowest requests</h3>"
    yield table(cells.SLOWEST_COLUMNS, cells.slowest_rows(records), "outcome")
