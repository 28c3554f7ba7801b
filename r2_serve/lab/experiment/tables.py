"""An experiment's results as text, for the terminal and the page alike: means over seeds, with their range in brackets."""

from __future__ import annotations

from r2_serve.lab.experiment.results import CellFigures, Difference, Row, Spread
from r2_serve.lab.load.cells import seconds

ROW_COLUMNS = (
    "workload",
    "variant",
    "seeds",
    "in time, %",
    "p50, s",
    "p95, s",
    "replica-s",
    "GPU $",
    "model $",
    "failed",
)
DIFFERENCE_COLUMNS = ("workload", "variant", "less", "seeds", "in time, points", "p95, s", "replica-s, %")
CELL_COLUMNS = (
    "workload",
    "variant",
    "seed",
    "requests",
    "in time, %",
    "p50, s",
    "p95, s",
    "replica-s",
    "of it starting",
    "failed",
)


def row_cells(row: Row) -> tuple[str, ...]:
    """As `ROW_COLUMNS`."""
    return (
        row.workload, row.variant, str(row.num_seeds), _range(row.slo_attainment, 100, 1), _mean_s(row.p50_s), _mean_s(row.p95_s),
        _range(row.replica_s, 1, 0), f"{row.gpu_usd.mean:.4f}", f"{row.model_usd.mean:.4f}", str(row.num_failed),
    )  # fmt: skip


def difference_cells(difference: Difference) -> tuple[str, ...]:
    """As `DIFFERENCE_COLUMNS`."""
    return (
        difference.workload, difference.variant, difference.against, str(difference.num_seeds),
        _range(difference.slo_attainment, 100, 1, sign="+"), _range(difference.p95_s, 1, 2, sign="+"),
        _range(difference.replica_s, 100, 1, sign="+"),
    )  # fmt: skip


def cell_cells(cell: CellFigures) -> tuple[str, ...]:
    """As `CELL_COLUMNS`."""
    return (
        cell.workload, cell.variant, str(cell.seed), str(cell.num_requests), f"{100 * cell.slo_attainment:.1f}", seconds(cell.p50_s),
        seconds(cell.p95_s), f"{cell.replica_s:.0f}", f"{cell.starting_s:.0f}", str(cell.num_failed),
    )  # fmt: skip


def _mean_s(spread: Spread | None) -> str:
    return seconds(spread.mean if spread is not None else None)


def _range(spread: Spread | None, factor: float, digits: int, sign: str = "") -> str:
    if spread is None:
        return "-"
    mean, low, high = (
        f"{factor * value:{sign}.{digits}f}" for value in (spread.mean, spread.low, spread.high)
    )
    return mean if low == high else f"{mean} [{low}, {high}]"
