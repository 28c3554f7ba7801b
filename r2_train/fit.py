"""`r2-train fit`: fits a gate, or `plan: auto`, on recorded outcomes, in seconds and without a model.

A fit of the whole book takes seconds, so a changed price, a removed model or a new one is simply fitted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from r2_serve.gates.stored import PolicyFile
from r2_serve.lab.evaluation.planned_rows import read_both_ways
from r2_serve.lab.outcomes.baselines import best_single
from r2_serve.lab.outcomes.book import read_book
from r2_serve.lab.outcomes.goals import fit_policy, parse_target
from r2_serve.lab.outcomes.importing import priced, read_prices
from r2_serve.lab.outcomes.plan_fitting import fit_plan
from r2_serve.lab.outcomes.table import table_of
from r2_serve.lab.runs import code_version, machine_line
from r2_serve.router.fitted_plan import FittedPlanFile


@dataclass(frozen=True)
class FitRequest:
    """What is fitted, and for what."""

    book: Path
    reference: str | None = None
    """The model to be as accurate as; by default the target's, or the most accurate one."""
    target: str | None = None
    confidence: float = 0.95
    prices: Path | None = None
    """Prices that replace the book's."""
    without: Sequence[str] = ()
    """Models that are left out."""
    seed: int = 0
    ways: tuple[str, str] | None = None
    """The names under which the source holds answers with a plan and by a direct call. None fits a gate."""


def fit_plan_file(request: FitRequest) -> FittedPlanFile:
    """Fit `plan: auto` on the tasks of a run or a book that were answered both ways.

    Raises: BookError, RunError, BenchmarkError, OSError.
    """
    assert request.ways is not None
    planned, direct = request.ways
    target = parse_target(request.target, request.confidence) if request.target else None
    if target is not None:
        ways = {planned: "planned", direct: "direct"}
        target = replace(target, model=ways.get(target.model, target.model))
    pairs = read_both_ways(request.book, planned, direct)
    found = fit_plan(pairs, target, request.seed)
    return FittedPlanFile(
        made=_made(),
        source=request.book.name,
        planned=planned,
        direct=direct,
        tasks=len(pairs),
        target=request.target,
        confidence=request.confidence if target else None,
        expected_difference=found.expected_difference,
        expected_cost_ratio=found.expected_cost_ratio,
        expected_planned=found.expected_planned,
        fit=found.fit,
    )


def fit_book(request: FitRequest) -> PolicyFile:
    """Fit the gate of a request. Raises: BookError, OSError."""
    by_model = read_prices(request.prices) if request.prices else {}
    records = read_book(request.book)
    table = table_of(priced(record, by_model) for record in records)
    graders = {record.grader for record in records if not record.step}
    for model in request.without:
        table.place(model)
    if request.without:
        table = table.only([model for model in table.models if model not in request.without])
    target = parse_target(request.target, request.confidence) if request.target else None
    reference = request.reference or (target.model if target else table.models[best_single(table)])
    return PolicyFile(
        made=_made(),
        book=request.book.name,
        tasks=len(table),
        grader=graders.pop() if len(graders) == 1 else None,
        target=request.target,
        confidence=request.confidence if target else None,
        policy=fit_policy(table, reference, target, request.seed),
    )


def _made() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}, r2 {code_version()}, {machine_line()}"
