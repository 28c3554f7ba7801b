"""An experiment's page (`r2_serve.lab.reports.html`); the pages of its runs lie below it and are linked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from r2_serve.lab.experiment import tables
from r2_serve.lab.experiment.plots import replicas_plot, trade_plot
from r2_serve.lab.experiment.results import Results
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.load.run_directory import REPORT
from r2_serve.lab.reports.html import document, table

Timelines = Mapping[str, Mapping[str, Sequence[TimelineSample]]]
"""By workload and variant, of one seed."""


def page(results: Results, timelines: Timelines) -> str:
    """Tables and pictures of what is done."""
    done = f"{len(results.cells)} of {results.num_cells} runs done"
    warned = sum(bool(cell.warnings) for cell in results.cells)
    origin = f"{results.target}; {results.machine}; code {results.code_version}; {done}"
    return document(
        f"Experiment: {results.name}",
        "\n".join(
            [
                f'<p class="small">{escape(origin)}</p>',
                *(
                    [f'<p class="note">Warning: {warned} runs carry warnings; see their pages.</p>']
                    if warned
                    else []
                ),
                table(
                    tables.ROW_COLUMNS,
                    ((tables.row_cells(row), "") for row in results.rows),
                    texts=("variant",),
                ),
                '<p class="small">Means over seeds [lowest, highest]. In time: answered within the objective, of all requests. '
                "Replica-seconds: running and starting, of the deployments that scale, to the last reply.</p>",
                *_differences(results),
                *(
                    part
                    for workload in timelines
                    for part in _workload(results, workload, timelines[workload])
                ),
                "<h3>Runs</h3>",
                table(
                    tables.CELL_COLUMNS,
                    ((tables.cell_cells(cell), "") for cell in results.cells),
                    texts=("variant",),
                ),
                f'<p class="small">{_links(results)}</p>',
            ]
        ),
    )


def _differences(results: Results) -> list[str]:
    if not results.differences:
        return []
    rows = ((tables.difference_cells(difference), "") for difference in results.differences)
    note = '<p class="small">Seed by seed, so of the same requests at the same times.</p>'
    return [
        "<h3>Paired differences</h3>",
        table(tables.DIFFERENCE_COLUMNS, rows, texts=("variant", "less")),
        note,
    ]


def _workload(
    results: Results, workload: str, timelines: Mapping[str, Sequence[TimelineSample]]
) -> list[str]:
    cells = [cell for cell in results.cells if cell.workload == workload]
    return [
        f"<h2>{escape(workload)}</h2>",
        f'<div class="scroll">{trade_plot(cells, list(dict.fromkeys(cell.variant for cell in results.cells)))}</div>',
        f'<div class="scroll">{replicas_plot(timelines, results.scaled)}</div>',
    ]


def _links(results: Results) -> str:
    return ", ".join(
        f'<a href="{escape(cell.directory)}/{REPORT}">{escape(f"{cell.workload} {cell.variant} {cell.seed}")}</a>'
        for cell in results.cells
    )
