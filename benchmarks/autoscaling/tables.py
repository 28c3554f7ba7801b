"""Writes what docs/autoscaling.md shows of an experiment: a Markdown table and a picture for each workload.

python -m benchmarks.autoscaling.tables runs/experiment/autoscaling-simulated docs
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.files import write_whole
from r2_serve.lab.experiment.plots import trade_plot
from r2_serve.lab.experiment.report import ROW
from r2_serve.lab.experiment.results import Results

COLUMNS = ("variant", "in time, %", "p50, s", "p95, s", "replica-s", "GPU-s", "node-s", "failed")


def main(
    run: Annotated[Path, typer.Argument(help="Directory of the experiment.")],
    out: Annotated[Path, typer.Argument(help="Directory for the pictures, autoscaling-WORKLOAD.svg.")],
) -> None:
    """Print a table of each workload, and draw attainment and latency against node-seconds."""
    results = Results.model_validate_json((run / "results.json").read_bytes())
    variants = list(dict.fromkeys(cell.variant for cell in results.cells))
    for workload in dict.fromkeys(row.workload for row in results.rows):
        rows = [row for row in results.rows if row.workload == workload]
        typer.echo(f"\n{workload}, {rows[0].num_seeds} seeds\n")
        typer.echo(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for row in rows:
            typer.echo(f"| {' | '.join(ROW[column](row) for column in COLUMNS)} |")
        cells = [cell for cell in results.cells if cell.workload == workload]
        write_whole(out / f"autoscaling-{workload}.svg", trade_plot(cells, variants))


if __name__ == "__main__":
    typer.run(main)
