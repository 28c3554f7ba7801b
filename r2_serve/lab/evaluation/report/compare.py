"""`r2-serve eval compare A B`: the same policies in two runs, or two policies of one, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from r2_serve.errors import counted
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.comparisons import compared, p_value
from r2_serve.lab.evaluation.report.results import Results, read_results
from r2_serve.lab.evaluation.report.table import broken_name
from r2_serve.lab.reports.terminal import figures_table
from r2_serve.lab.runs import RunError
from r2_serve.lab.statistics import Paired, holm
from r2_serve.types import Record

COLUMNS = ("policy of A", "of B", "A", "B", "points (95 % CI)", "p", "A is", "cost, times (CI)")


class ComparedPolicies(Paired):
    """A policy of run A ("ours") compared with one of run B ("theirs")."""

    policy: str
    other: str
    accuracy: float
    other_accuracy: float
    holm_p: float
    """McNemar's p-value (over several seeds the bootstrap's), corrected for the number of rows."""


class RunComparison(Record):
    """Two runs, on the tasks that both have."""

    a: str
    b: str
    num_tasks: int
    num_left_out: int
    """Tasks that only one of the two runs has."""
    margin: float
    rows: tuple[ComparedPolicies, ...]


def compare_runs(
    a: Path, b: Path, policies: Sequence[str], others: Sequence[str], margin: float
) -> RunComparison:
    """Compare policies of A with those of B at the same places; by default all that both have.

    Raises: RunError if a run or a policy is not there, or if the runs have no task in common.
    """
    ours, theirs = read_results(a), read_results(b)
    if ours.manifest.benchmark != theirs.manifest.benchmark:
        raise RunError(f"{a} is a run of {ours.manifest.benchmark}, {b} of {theirs.manifest.benchmark}")
    tasks = ours.tasks_with(theirs)
    if not tasks:
        raise RunError(f"{a} and {b} have no task in common")
    pairs = _pairs(ours, theirs, policies, others)
    found = {pair: compared(ours, pair[0], theirs, pair[1], margin) for pair in pairs}
    corrected = holm({"\0".join(pair): p_value(result) for pair, result in found.items()})
    return RunComparison(
        a=str(a),
        b=str(b),
        num_tasks=len(tasks),
        num_left_out=len(ours.tasks ^ theirs.tasks),
        margin=margin,
        rows=tuple(
            ComparedPolicies(
                **dict(result),
                policy=policy,
                other=other,
                accuracy=float(ours.right(policy, tasks).mean()),
                other_accuracy=float(theirs.right(other, tasks).mean()),
                holm_p=corrected[f"{policy}\0{other}"],
            )
            for (policy, other), result in found.items()
        ),
    )


def _pairs(
    ours: Results, theirs: Results, policies: Sequence[str], others: Sequence[str]
) -> list[tuple[str, str]]:
    """The policies to compare; one policy on one side stands against each of the other side."""
    known, also_known = ours.manifest.policies, theirs.manifest.policies
    mine = list(policies) or ([name for name in known if name in also_known] if not others else list(known))
    other = list(others) or mine
    for name, run, names in (
        (n, r, k) for r, k, some in ((ours, known, mine), (theirs, also_known, other)) for n in some
    ):
        if name not in names:
            raise RunError(f"{run.directories[0]} has no policy {name!r}; it has {', '.join(names)}")
    if len(mine) == 1 or len(other) == 1:
        return [(x, y) for x in mine for y in other if ours.directories != theirs.directories or x != y]
    if len(mine) != len(other):
        raise RunError(f"{len(mine)} policies of A cannot be compared one by one with {len(other)} of B")
    return list(zip(mine, other, strict=True))


def comparison_cells(row: ComparedPolicies) -> cells.Cells:
    """One row in the order of `COLUMNS`."""
    return (
        row.policy,
        row.other,
        *map(cells.percent, (row.accuracy, row.other_accuracy)),
        cells.difference(row),
        cells.probability(row.holm_p),
        row.verdict,
        cells.cost_ratio(row),
    )


def print_comparison(found: RunComparison, console: Console) -> None:
    """Print two tables of 80 columns, and what they mean."""
    console.print(Text(f"A: {found.a} · B: {found.b} · {counted(found.num_tasks, 'task')}", style="bold"))
    first, second = [], []
    for row in found.rows:
        ours, theirs, *accuracy, p, verdict, costs = comparison_cells(row)
        first.append((broken_name(ours), broken_name(theirs), *accuracy))
        second.append((broken_name(ours), p, cells.probability(row.bootstrap_p), verdict, costs))
    narrow = ("policy of A", "p", "bootstrap", "A is", "cost, times (CI)")
    for columns, rows, num_texts in ((COLUMNS[:5], first, 2), (narrow, second, 1)):
        console.print(figures_table(columns, rows, num_texts=num_texts, has_edge=False))
        console.print()
    for note in notes(found):
        console.print(Text(note))


def notes(found: RunComparison) -> list[str]:
    """Sentences without which the figures would mislead."""
    left_out = f"Left out, as only one of the runs has them: {counted(found.num_left_out, 'task')}."
    return [
        *([left_out] if found.num_left_out else []),
        "Points and costs: A against B on the same tasks, with 95 % bootstrap intervals. p: McNemar's exact "
        "test (the bootstrap's over several seeds), corrected by Holm. bootstrap: its own p, uncorrected.",
        f"'not worse': Tango's test proves a loss below {cells.points(found.margin)} (one-sided, 2.5 %).",
    ]
