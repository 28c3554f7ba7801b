"""What the cells of an experiment come to: a row for each workload and variant, and how it differs from the first variant.

Differences are paired: of the same workload and seed, so the same requests at the same times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from statistics import fmean

from r2_serve.lab.experiment.cells import Cell
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.types import Record


class Spread(Record):
    """Of a figure over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(mean=fmean(values), low=min(values), high=max(values))

    @classmethod
    def of_known(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that are there."""
        known = [value for value in values if value is not None]
        return cls.of(known) if known else None


class CellFigures(Record):
    """One finished cell."""

    workload: str
    variant: str
    seed: int
    directory: str
    """Below that of the experiment."""
    num_requests: int
    slo_attainment: float
    goodput_per_s: float
    p50_s: float | None
    """Of the answered; None where none was. So `p95_s`."""
    p95_s: float | None
    replica_s: float
    """Of the deployments that scale."""
    starting_s: float
    gpu_s: float
    gpu_usd: float
    model_usd: Decimal
    num_failed: int
    warnings: tuple[str, ...]


class Row(Record):
    """A variant under a workload, over its seeds."""

    workload: str
    variant: str
    num_seeds: int
    slo_attainment: Spread
    goodput_per_s: Spread
    p50_s: Spread | None
    p95_s: Spread | None
    replica_s: Spread
    starting_s: Spread
    gpu_s: Spread
    gpu_usd: Spread
    model_usd: Spread
    num_failed: int


class Difference(Record):
    """A variant less the first one, seed by seed."""

    workload: str
    variant: str
    against: str
    num_seeds: int
    slo_attainment: Spread
    """In shares: 0.1 is ten points."""
    p95_s: Spread | None
    replica_s: Spread | None
    """As a share of the first variant's: -0.2 is a fifth less. None where it had none."""


class Results(Record):
    """An experiment, as far as it is done."""

    name: str
    target: str
    machine: str
    code_version: str
    num_cells: int
    """Done or not."""
    scaled: tuple[str, ...]
    cells: tuple[CellFigures, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]


def figures_of(cell: Cell, summary: LoadSummary, scaled: Sequence[str], out: str) -> CellFigures:
    used = [use for name, use in summary.deployments.items() if name in scaled]
    latency = summary.latency_s
    return CellFigures(
        workload=cell.workload.name,
        variant=cell.variant,
        seed=cell.seed,
        directory=out,
        num_requests=summary.num_sent,
        slo_attainment=summary.slo_attainment or 0.0,
        goodput_per_s=summary.goodput_per_s,
        p50_s=latency.p50 if latency else None,
        p95_s=latency.p95 if latency else None,
        replica_s=sum(use.replica_s for use in used),
        starting_s=sum(use.starting_s for use in used),
        gpu_s=summary.gpu_s,
        gpu_usd=summary.gpu_usd,
        model_usd=summary.cost_usd,
        num_failed=summary.num_failed,
        warnings=summary.warnings,
    )


def rows_of(cells: Sequence[CellFigures]) -> tuple[Row, ...]:
    """In the order in which workloads and variants first come."""
    groups: dict[tuple[str, str], list[CellFigures]] = {}
    for cell in cells:
        groups.setdefault((cell.workload, cell.variant), []).append(cell)
    return tuple(_row(group) for group in groups.values())


def differences_of(cells: Sequence[CellFigures], first: str) -> tuple[Difference, ...]:
    """Of seeds that both have."""
    known = {(cell.workload, cell.variant, cell.seed): cell for cell in cells}
    pairs: dict[tuple[str, str], list[tuple[CellFigures, CellFigures]]] = {}
    for cell in cells:
        reference = known.get((cell.workload, first, cell.seed))
        if cell.variant != first and reference is not None:
            pairs.setdefault((cell.workload, cell.variant), []).append((cell, reference))
    return tuple(_difference(workload, variant, first, group) for (workload, variant), group in pairs.items())


def _row(cells: Sequence[CellFigures]) -> Row:
    def spread(field: str) -> Spread:
        return Spread.of([float(getattr(cell, field)) for cell in cells])

    names = ("slo_attainment", "goodput_per_s", "replica_s", "starting_s", "gpu_s", "gpu_usd", "model_usd")
    fields: Mapping[str, Spread] = {name: spread(name) for name in names}
    return Row(
        workload=cells[0].workload,
        variant=cells[0].variant,
        num_seeds=len(cells),
        p50_s=Spread.of_known(cell.p50_s for cell in cells),
        p95_s=Spread.of_known(cell.p95_s for cell in cells),
        num_failed=sum(cell.num_failed for cell in cells),
        **fields,
    )


def _difference(
    workload: str, variant: str, first: str, pairs: Sequence[tuple[CellFigures, CellFigures]]
) -> Difference:
    return Difference(
        workload=workload,
        variant=variant,
        against=first,
        num_seeds=len(pairs),
        slo_attainment=Spread.of(
            [cell.slo_attainment - reference.slo_attainment for cell, reference in pairs]
        ),
        p95_s=Spread.of_known(
            cell.p95_s - reference.p95_s if cell.p95_s is not None and reference.p95_s is not None else None
            for cell, reference in pairs
        ),
        replica_s=Spread.of_known(
            cell.replica_s / reference.replica_s - 1 if reference.replica_s else None
            for cell, reference in pairs
        ),
    )
