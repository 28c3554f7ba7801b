"""The results of an experiment: a row for each workload and variant, and its difference from the first
variant.

Differences are paired: both runs have the same workload and seed, so the same requests at the same times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from statistics import fmean
from typing import Self

import numpy as np

from r2_serve.lab.experiment.cells import Cell
from r2_serve.lab.load.summary import LoadSummary
from r2_serve.lab.statistics import bootstrap_interval
from r2_serve.types import Record


class Spread(Record):
    """A figure over seeds: its mean, with the 95 % bootstrap interval of that mean."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        low, high = bootstrap_interval(np.array(values, dtype=np.float64))
        return cls(mean=fmean(values), low=low, high=high)

    @classmethod
    def of_known(cls, values: Iterable[float | None]) -> Self | None:
        """The spread of the values that are known; None if none is."""
        known = [value for value in values if value is not None]
        return cls.of(known) if known else None


class CellFigures(Record):
    """One finished cell."""

    workload: str
    variant: str
    seed: int
    directory: str
    """Path below the experiment's directory."""
    num_requests: int
    slo_attainment: float
    goodput_per_s: float
    p50_s: float | None
    """Median latency of answered requests; None, as `p95_s`, if none was answered."""
    p95_s: float | None
    replica_s: float
    """Replica-seconds of the deployments that scale."""
    starting_s: float
    gpu_s: float
    gpu_usd: float
    node_s: float | None
    """Seconds of nodes with GPUs; None if they were not counted."""
    model_usd: Decimal
    num_failed: int
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, cell: Cell, summary: LoadSummary, scaled: Sequence[str], directory: str) -> Self:
        used = [use for name, use in summary.deployments.items() if name in scaled]
        latency = summary.latency_s
        return cls(
            workload=cell.workload.name,
            variant=cell.variant,
            seed=cell.seed,
            directory=directory,
            num_requests=summary.num_sent,
            slo_attainment=summary.slo_attainment or 0.0,
            goodput_per_s=summary.goodput_per_s,
            p50_s=latency.p50 if latency else None,
            p95_s=latency.p95 if latency else None,
            replica_s=sum(use.replica_s for use in used),
            starting_s=sum(use.starting_s for use in used),
            gpu_s=summary.gpu_s,
            gpu_usd=summary.gpu_usd,
            node_s=summary.node_s,
            model_usd=summary.cost_usd,
            num_failed=summary.num_failed,
            warnings=summary.warnings,
        )


class VariantRow(Record):
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
    node_s: Spread | None
    model_usd: Spread
    num_failed: int


class PairedDifference(Record):
    """A variant minus the first one, seed by seed."""

    workload: str
    variant: str
    against: str
    num_seeds: int
    slo_attainment: Spread
    """Difference of shares: 0.1 is ten points."""
    p95_s: Spread | None
    replica_s: Spread | None
    """Difference as a share of the first variant's: -0.2 is a fifth less. None if that had none."""
    node_s: Spread | None
    """The same of node-seconds."""


class Results(Record):
    """The finished part of an experiment."""

    name: str
    target: str
    machine: str
    code_version: str
    num_cells: int
    """All cells, done or not."""
    scaled: tuple[str, ...]
    cells: tuple[CellFigures, ...]
    rows: tuple[VariantRow, ...]
    differences: tuple[PairedDifference, ...]


def rows_of(cells: Sequence[CellFigures]) -> tuple[VariantRow, ...]:
    """Rows in the order in which workloads and variants first come."""
    groups: dict[tuple[str, str], list[CellFigures]] = defaultdict(list)
    for cell in cells:
        groups[cell.workload, cell.variant].append(cell)
    return tuple(_row(group) for group in groups.values())


def differences_of(cells: Sequence[CellFigures], first: str) -> tuple[PairedDifference, ...]:
    """Differences over the seeds that both variants have."""
    known = {(cell.workload, cell.variant, cell.seed): cell for cell in cells}
    pairs: dict[tuple[str, str], list[tuple[CellFigures, CellFigures]]] = defaultdict(list)
    for cell in cells:
        reference = known.get((cell.workload, first, cell.seed))
        if cell.variant != first and reference is not None:
            pairs[cell.workload, cell.variant].append((cell, reference))
    return tuple(_difference(group) for group in pairs.values())


def _row(cells: Sequence[CellFigures]) -> VariantRow:
    def spread(field: str) -> Spread:
        return Spread.of([float(getattr(cell, field)) for cell in cells])

    return VariantRow(
        workload=cells[0].workload,
        variant=cells[0].variant,
        num_seeds=len(cells),
        slo_attainment=spread("slo_attainment"),
        goodput_per_s=spread("goodput_per_s"),
        p50_s=Spread.of_known(cell.p50_s for cell in cells),
        p95_s=Spread.of_known(cell.p95_s for cell in cells),
        replica_s=spread("replica_s"),
        starting_s=spread("starting_s"),
        gpu_s=spread("gpu_s"),
        gpu_usd=spread("gpu_usd"),
        node_s=Spread.of_known(cell.node_s for cell in cells),
        model_usd=spread("model_usd"),
        num_failed=sum(cell.num_failed for cell in cells),
    )


def _difference(pairs: Sequence[tuple[CellFigures, CellFigures]]) -> PairedDifference:
    def p95_s(ours: CellFigures, theirs: CellFigures) -> float | None:
        return None if ours.p95_s is None or theirs.p95_s is None else ours.p95_s - theirs.p95_s

    def share(ours: float | None, theirs: float | None) -> float | None:
        return ours / theirs - 1 if theirs and ours is not None else None

    first, reference = pairs[0]
    return PairedDifference(
        workload=first.workload,
        variant=first.variant,
        against=reference.variant,
        num_seeds=len(pairs),
        slo_attainment=Spread.of([ours.slo_attainment - theirs.slo_attainment for ours, theirs in pairs]),
        p95_s=Spread.of_known(p95_s(*pair) for pair in pairs),
        replica_s=Spread.of_known(share(ours.replica_s, theirs.replica_s) for ours, theirs in pairs),
        node_s=Spread.of_known(share(ours.node_s, theirs.node_s) for ours, theirs in pairs),
    )
