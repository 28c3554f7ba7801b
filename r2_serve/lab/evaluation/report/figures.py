"""A run directory as figures: what every policy got right, what it cost, and how far it is from the others.

`r2_serve.lab.statistics` has the intervals and tests. They have a fixed seed, so that the same rows give the
same report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r2_serve.lab.evaluation.manifest import Manifest
from r2_serve.lab.evaluation.report.comparisons import (
    Comparison,
    EqualAccuracy,
    at_equal_accuracy,
    cheapest_rival,
    comparisons_of,
    pareto,
)
from r2_serve.lab.evaluation.report.policy import PolicyReport, policy_report
from r2_serve.lab.evaluation.report.results import read_results
from r2_serve.lab.evaluation.runner import read_shares
from r2_serve.lab.evaluation.tuning import Tuning, read_tuning
from r2_serve.lab.runs import RunError
from r2_serve.lab.statistics import MARGIN
from r2_serve.types import Record


class RunReport(Record):
    """One run, under one seed or several."""

    directory: str
    manifest: Manifest
    """Under several seeds: that of the first."""
    seeds: tuple[int, ...]
    margin: float
    """The accuracy that a policy may lose and still be called not worse."""
    policies: tuple[PolicyReport, ...]
    comparisons: tuple[Comparison, ...]
    at_equal_accuracy: EqualAccuracy | None
    """The cheapest by total cost. None without `r2`, or if no baseline is as good, or one is free."""
    at_equal_accuracy_api: EqualAccuracy | None
    """The same by API cost."""
    cheapest_rival: str | None
    """The baseline of the least total cost whose accuracy is at most `margin` below that of `r2`."""
    reference: str
    """The policy whose total cost is 100 %."""
    pareto: tuple[str, ...]
    """Policies that no other beats in both accuracy and total cost, cheapest first."""
    random_shares: dict[str, float] | None
    tuning: Tuning | None
    """How the tuned baselines were chosen; None if the run has none."""

    @property
    def reference_report(self) -> PolicyReport:
        return next(policy for policy in self.policies if policy.policy == self.reference)


def report_of(directory: Path, reference: str | None = None, margin: float = MARGIN) -> RunReport:
    """Read a run, or a directory with the runs of several seeds.

    `reference` is `single:LARGEST` by default, or `cot:LARGEST` if that costs nothing. Raises: RunError.
    """
    results = read_results(directory)
    manifest = results.manifest
    policies = tuple(
        policy_report(name, results.rows(name), manifest.num_tasks, manifest.models)
        for name in manifest.policies
    )
    comparisons = comparisons_of(policies, results, margin)
    rival = cheapest_rival(comparisons, margin)
    return RunReport(
        directory=str(directory),
        manifest=manifest,
        seeds=results.seeds,
        margin=margin,
        policies=policies,
        comparisons=comparisons,
        at_equal_accuracy=at_equal_accuracy(policies, lambda policy: policy.total_cost_usd),
        at_equal_accuracy_api=at_equal_accuracy(policies, lambda policy: policy.api_cost_usd),
        cheapest_rival=rival.baseline if rival else None,
        reference=_reference(policies, manifest.pool[-1], reference),
        pareto=pareto(policies),
        random_shares=read_shares(results.directories[0]),
        tuning=read_tuning(results.directories[0]),
    )


def _reference(policies: Sequence[PolicyReport], largest: str, asked: str | None) -> str:
    """Raises: RunError if the run has no policy of the name that was asked for."""
    names = [policy.policy for policy in policies]
    if asked is not None:
        if asked not in names:
            raise RunError(f"no policy {asked!r} in the run to refer costs to; it has {', '.join(names)}")
        return asked
    costly = [policy.policy for policy in policies if policy.total_cost_usd]
    usual = [name for name in (f"single:{largest}", f"cot:{largest}") if name in costly]
    return usual[0] if usual else max(policies, key=lambda policy: policy.total_cost_usd).policy
