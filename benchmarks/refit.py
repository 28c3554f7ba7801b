"""A changed price, a removed model, a model that was added: how long a new fit of the gate takes, and what it
reaches.

    python benchmarks/refit.py books/gsm.book books/math-l5.book --reference gpt-4o

The gate is fitted on one half of the book and answers the other half. A fit keeps nothing of an earlier one,
so it reaches all of what a fit from nothing reaches; the table shows what the gate of before the change would
do in its place, at the new prices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from r2_serve.errors import BookError
from r2_serve.gates.fitted import Answers, FittedPolicy
from r2_serve.gates.table import OutcomeTable
from r2_serve.lab.outcomes.book import read_book
from r2_serve.lab.outcomes.goals import fit_policy, run_policy
from r2_serve.lab.outcomes.table import table_of
from r2_serve.lab.reports.terminal import figures_table
from r2_serve.lab.runs import machine_line

COLUMNS = ("change", "CPU s", "old gate: points", "cost", "new gate: points", "cost")


def main() -> None:
    """Print a table for each book."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", nargs="+", type=Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of the halves")
    given = parser.parse_args()
    console = Console(markup=False, width=110)
    for path in given.books:
        try:
            table = table_of(read_book(path))
            console.print(Text(f"{path.name} · reference {given.reference}", style="bold"))
            console.print(figures_table(COLUMNS, rows(table, given.reference, given.seed)))
        except BookError as e:
            sys.exit(f"refit: {e}")
    console.print("points, cost: against the reference, on the half that no fit has seen")
    console.print(machine_line())


def rows(table: OutcomeTable, reference: str, seed: int) -> Iterator[tuple[str, ...]]:
    """A row for each change. The model that changes is the one that the gate asks first."""
    order = np.random.default_rng(seed).permutation(len(table))
    first, _ = fitted(table, order, reference)
    model = first.gates[0].order[0] if first.gates else next(m for m in table.models if m != reference)
    rest = [name for name in table.models if name != model]
    without, _ = fitted(table.only(rest), order, reference)
    dearer = table.at_prices({model: 10.0})
    changes = {
        "none": (table, first),
        f"{model} ten times as dear": (dearer, first),
        f"{model} removed": (table.only(rest), None),
        f"{model} added": (table, without),
    }
    for name, (changed, old) in changes.items():
        start = time.process_time()
        new, reporting = fitted(changed, order, reference)
        seconds = time.process_time() - start
        kept = ("-", "-") if old is None else figures(run_policy(old, reporting), reporting, reference)
        yield (name, f"{seconds:.1f}", *kept, *figures(run_policy(new, reporting), reporting, reference))


def fitted(
    table: OutcomeTable, order: np.typing.NDArray[np.int64], reference: str
) -> tuple[FittedPolicy, OutcomeTable]:
    """The policy of the fitting half, and the other half."""
    half = len(order) // 2
    fitting, reporting = table.take(np.sort(order[:half])), table.take(np.sort(order[half:]))
    return fit_policy(fitting, reference), reporting


def figures(answers: Answers, table: OutcomeTable, reference: str) -> tuple[str, str]:
    """Points above the reference, and the cost in % of its cost."""
    at = table.place(reference)
    points = 100 * (answers.accuracy - float(table.right[:, at].mean()))
    return f"{points:+.2f}", f"{100 * answers.mean_cost_usd / float(table.cost_usd[:, at].mean()):.1f} %"


if __name__ == "__main__":
    main()
