"""Two runs against each other, task by task or request by request; or the reason why that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from r2_serve.lab.evaluation.report.compare import ComparedPolicies, RunComparison, compare_runs
from r2_serve.lab.evaluation.report.comparisons import p_value
from r2_serve.lab.load.records import LoadRecord
from r2_serve.lab.load.run_directory import RequestFile
from r2_serve.lab.load.summary import is_good
from r2_serve.lab.results.record import FoundRun
from r2_serve.lab.runs import RunError
from r2_serve.lab.simulate.compare import read_summary
from r2_serve.lab.statistics import paired

IN_TIME = "in time"
"""The row of a comparison of loads: requests that met the objective of their workload."""
WHY_NOT = {
    "experiment": "an experiment holds the paired differences of its own variants: `r2-serve runs export` "
    "writes them, and two of its runs (load) can be compared",
    "replay": "a replay holds means and no tasks: run `r2-serve replay` on a book that holds all models",
    "train": "a training run holds scores on validation tasks and no answers: evaluate both routers with "
    "`r2-serve eval run` on the same tasks, and compare those runs",
    "ladder": "a ladder holds its own paired tests; `r2-serve runs export` writes them",
    "demo": "a demo keeps no answers: use `r2-serve eval run`",
}
"""The reason for kinds that hold no tasks, and what to do."""


def compare(
    runs: tuple[FoundRun, FoundRun],
    paths: tuple[Path, Path],
    policies: Sequence[str],
    others: Sequence[str],
    margin: float,
) -> RunComparison:
    """The paired comparison of two runs of one kind. Raises: RunError, which says why there is none."""
    kinds = [run.kind for run in runs]
    for run in runs:
        if run.state == "broken":
            raise RunError(f"{run.path} cannot be compared, as it cannot be read: {run.progress}")
        if run.kind in WHY_NOT:
            raise RunError(f"{run.path} cannot be compared: {WHY_NOT[run.kind]}")
    if "eval" in kinds:
        if kinds != ["eval", "eval"]:
            pair = " and ".join(f"{run.path} ({run.kind})" for run in runs)
            raise RunError(f"{pair} are of different kinds and share no tasks")
        return compare_runs(*paths, policies, others, margin)
    if policies or others:
        raise RunError("--policy and --with are for evaluations: a load has no policies")
    return _loads(*paths, margin)


def _loads(a: Path, b: Path, margin: float) -> RunComparison:
    """Two loads of one workload and seed, which sent the same requests at the same times."""
    first, second = read_summary(a).info, read_summary(b).info
    for name in ("workload", "seed", "slo"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise RunError(f"{a} and {b} sent other requests: their {name} is {ours!r} and {theirs!r}")
    one, other = _ended(a), _ended(b)
    both = sorted(one.keys() & other.keys())
    if not both:
        raise RunError(f"{a} and {b} have no ended request in common: were they run with --no-rows?")
    right = [np.array([is_good(found[i], first.slo) for i in both], dtype=float) for found in (one, other)]
    cost = [np.array([float(found[i].cost_usd or 0) for i in both]) for found in (one, other)]
    result = paired(right[0], right[1], cost[0], cost[1], margin)
    row = ComparedPolicies(
        **dict(result),
        policy=IN_TIME,
        other=IN_TIME,
        accuracy=float(right[0].mean()),
        other_accuracy=float(right[1].mean()),
        holm_p=p_value(result),
    )
    left_out = len(one.keys() ^ other.keys())
    return RunComparison(
        a=str(a), b=str(b), num_tasks=len(both), num_left_out=left_out, margin=margin, rows=(row,)
    )


def _ended(directory: Path) -> dict[int, LoadRecord]:
    return {record.index: record for record in RequestFile(directory) if record.outcome != "unfinished"}
