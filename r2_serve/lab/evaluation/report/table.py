"""A report as tables for a terminal of 80 columns; long policy names break at their commas, figures never.

`is_brief` prints the first table and the notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.figures import RunReport
from r2_serve.lab.evaluation.report.policy import PolicyReport
from r2_serve.lab.reports.terminal import figures_table

NAME_CHARS = 21
"""Characters of a policy's name on one line."""


def print_report(report: RunReport, console: Console, *, is_brief: bool = False) -> None:
    """Print every table of one run, or the first one."""
    console.print(Text(cells.title(report), style="bold"))
    for table in islice(_tables(report), 1 if is_brief else None):
        console.print(table)
        console.print()
    for note in cells.notes(report):
        console.print(Text(note))
    console.print()


def print_overview(reports: Sequence[RunReport], console: Console) -> None:
    """Print several runs, a line for each."""
    console.print(_table(cells.OVERVIEW_COLUMNS, map(cells.overview_row, reports)))
    console.print(Text("r2's cost: in % of the reference's total cost\n"))


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str | None = None,
    styles: Sequence[str] = (),
) -> Table:
    """A table without outer edges, for which 80 columns have no room; the first column holds names."""
    broken = ((broken_name(name), *figures) for name, *figures in rows)
    return figures_table(columns, broken, caption=caption, styles=styles, has_edge=False)


def broken_name(name: str, width: int = NAME_CHARS) -> str:
    """`cascade:a,b,c` in lines of at most `width`, broken after commas, else after the colon."""
    parts = name.replace(",", ",\n").replace(":", ":\n").split("\n")
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(f"  {part}")
    return "\n".join(lines)


def accuracy_table(
    policies: Sequence[PolicyReport], reference: PolicyReport, *, styles: Sequence[str], caption: str
) -> Table:
    """What each policy got right and cost; all costs and those of workers in % of the reference's total."""
    rows = []
    for policy in policies:
        name, accuracy, interval, _, total, share, api, *_ = cells.accuracy_cells(policy, reference)
        workers = cells.relative(policy.worker_cost_usd, reference.total_cost_usd)
        rows.append((name, accuracy, interval, total, share, workers, api))
    columns = ("policy", "accuracy", "95 % CI", "total", "% of ref", "workers", "API")
    return _table(columns, rows, styles=styles, caption=caption)


def usage_table(policies: Sequence[PolicyReport]) -> Table:
    """Calls, tokens, latency and plans of each policy."""
    return _table(
        ("policy", "calls", "tokens", "p50 s", "p95 s", "steps", "width", "depth", "router"),
        [
            (*cells.usage_cells(policy), cells.relative(policy.router_cost_usd, policy.total_cost_usd))
            for policy in policies
        ],
        caption="calls, tokens: per task; router: the share of its own calls in the total cost",
    )


def models_table(policies: Iterable[PolicyReport]) -> Table:
    """What each model did; the name of each policy stands on a line above its models."""
    table = _table(cells.MODEL_COLUMNS[1:], ())
    for policy, *row in cells.model_rows(policies):
        if policy:
            table.add_row(Text(broken_name(policy), style="bold"))
        table.add_row(f"  {row[0]}", *row[1:])
    return table


def _tables(report: RunReport) -> Iterator[Table]:
    policies = report.policies
    styles = [_style(policy, report) for policy in policies]
    caption = "dim: another policy is at least as accurate and cheaper in total; workers: in % of ref"
    yield accuracy_table(policies, report.reference_report, styles=styles, caption=caption)
    yield usage_table(policies)
    found = [name for name in policies[0].statuses if any(policy.statuses[name] for policy in policies)]
    if set(found) - {"correct", "wrong"}:
        counts = [
            (policy.policy, *(str(policy.statuses[status] or "-") for status in found)) for policy in policies
        ]
        yield _table(("policy", *found), counts)
    if report.comparisons:
        yield _table(cells.COMPARISON_COLUMNS, cells.comparison_rows(report))
    yield models_table(policies)


def _style(policy: PolicyReport, report: RunReport) -> str:
    return "bold" if policy.policy == R2 else "" if policy.policy in report.pareto else "dim"
