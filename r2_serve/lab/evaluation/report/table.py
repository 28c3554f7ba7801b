"""A report as tables for a terminal of 80 columns; long policy names break at their commas, figures never.

`brief` prints the first table and the notes: what a README quotes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2_serve.lab.evaluation.policies import R2
from r2_serve.lab.evaluation.report import cells
from r2_serve.lab.evaluation.report.figures import PolicyReport, RunReport
from r2_serve.lab.reports.terminal import usd

NAME_CHARS = 21
"""Of a policy's name on one line."""


def print_report(report: RunReport, console: Console, *, is_brief: bool = False) -> None:
    """Every table of one run, or the first one."""
    console.print(Text(cells.title(report), style="bold"))
    tables = [_accuracy_table(report)] if is_brief else _tables(report)
    for table in tables:
        console.print(table)
        console.print()
    for note in cells.notes(report):
        console.print(Text(note))
    console.print()


def print_overview(reports: Sequence[RunReport], console: Console) -> None:
    """Several runs, a line each."""
    console.print(_table(cells.OVERVIEW_COLUMNS, [cells.overview_row(report) for report in reports]))
    console.print(Text("r2's cost: in % of the reference's total cost\n"))


def _tables(report: RunReport) -> list[Table]:
    tables = [_accuracy_table(report), _usage_table(report)]
    if any(
        policy.statuses[status]
        for policy in report.policies
        for status in policy.statuses
        if status not in ("correct", "wrong")
    ):
        tables.append(_statuses_table(report))
    if report.comparisons:
        tables.append(_comparisons_table(report))
    return [*tables, _models_table(report)]


def _accuracy_table(report: RunReport) -> Table:
    rows = [
        (
            policy.policy, cells.percent(policy.accuracy), cells.interval(policy.accuracy_ci95), usd(policy.total_cost_usd),
            cells.relative_cost(policy, report), usd(policy.api_cost_usd),
        )
        for policy in report.policies
    ]  # fmt: skip
    columns = ("policy", "accuracy", "95 % CI", "total", "% of ref", "API cost")
    table = _table(columns, rows, styles=[_style(policy, report) for policy in report.policies])
    table.caption = "dim: another policy is at least as accurate and cheaper in total"
    return table


def _usage_table(report: RunReport) -> Table:
    rows = [(*cells.usage_cells(policy), cells.router_share(policy)) for policy in report.policies]
    columns = ("policy", "calls", "tokens", "p50 s", "p95 s", "steps", "width", "depth", "router")
    table = _table(columns, rows)
    table.caption = "calls, tokens: per task; router: the share of its own calls in the total cost"
    return table


def _statuses_table(report: RunReport) -> Table:
    """The statuses that occur, as counts."""
    found = [
        status
        for status in report.policies[0].statuses
        if any(policy.statuses[status] for policy in report.policies)
    ]
    rows = [
        (policy.policy, *(str(policy.statuses[status] or "-") for status in found))
        for policy in report.policies
    ]
    return _table(("policy", *found), rows)


def _comparisons_table(report: RunReport) -> Table:
    return _table(cells.COMPARISON_COLUMNS, cells.comparison_rows(report))


def _models_table(report: RunReport) -> Table:
    """A line with the policy's name above its models."""
    table = _table(cells.MODEL_COLUMNS[1:], ())
    for policy, *row in cells.model_rows(report):
        if policy:
            table.add_row(Text(broken_name(policy), style="bold"))
        table.add_row(f"  {row[0]}", *row[1:])
    return table


def _style(policy: PolicyReport, report: RunReport) -> str:
    return "bold" if policy.policy == R2 else "" if policy.policy in report.pareto else "dim"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], styles: Sequence[str] = ()) -> Table:
    """The first column holds names, the others figures."""
    table = Table(
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
        caption_justify="left",
    )
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    for i, (name, *figures) in enumerate(rows):
        table.add_row(broken_name(name), *figures, style=styles[i] if styles else "")
    return table


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
