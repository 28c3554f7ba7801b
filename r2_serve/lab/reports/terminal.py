"""Tables, money and traces as text for terminals: the DAG of one query, its models, times and costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import zip_longest

from rich.box import SIMPLE
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from r2_serve.calls.ledger import total_cost_usd
from r2_serve.errors import counted
from r2_serve.types import CallRecord, Plan, SubtaskResult, Trace, references

BAR_WIDTH = 12
_LEVEL_COLORS = ("cyan", "green", "yellow", "magenta", "blue", "red")


def usd(amount: Decimal) -> str:
    """Dollars for humans: three digits, in micro-dollars where small."""
    if amount == 0:
        return "$0"
    if amount >= Decimal("0.01"):
        return f"${amount:.4f}"
    return f"{amount * 1_000_000:.3g} µ$" if amount * 1_000_000 < 1000 else f"{amount * 1000:.3g} m$"


def figures_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    num_texts: int = 1,
    title: str | None = None,
    caption: str | None = None,
    styles: Sequence[str] = (),
    has_edge: bool = True,
) -> Table:
    """A table whose first `num_texts` columns are left-aligned. Texts fold, so that figures are not cut.

    `styles` gives the style of each row, such as "bold"; without it all rows are plain. Wide tables have no
    edge, for which 80 columns have no room.
    """
    table = Table(title=title, caption=caption, caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = has_edge
    for i, column in enumerate(columns):
        is_text = i < num_texts
        justify: JustifyMethod = "left" if is_text else "right"
        table.add_column(column, justify=justify, no_wrap=not is_text, overflow="fold")
    for row, style in zip_longest(rows, styles):
        table.add_row(*row, style=style)
    return table


def trace_view(trace: Trace) -> RenderableType:
    """The plan as a timeline: one row per subtask, the router's own calls above, the answer below."""
    if trace.plan is None:
        return Text(f"{trace.model} answered without a plan", style="dim")
    parts: list[RenderableType] = [Text(note, style="yellow") for note in _notes(trace)]
    parts += [_timeline(trace, trace.plan), Text(_summary(trace), style="dim")]
    return Group(*parts)


def dag_view(plan: Plan) -> Text:
    """The DAG alone, level by level: `1 2 -> 3 -> 4`."""
    columns = ("[" + " ".join(f"#{i}" for i in level) + "]" for level in plan.levels)
    ends = f" => {plan.answer}" if plan.answer is not None else ""
    return Text(" -> ".join(columns) + ends, style="bold")


def _notes(trace: Trace) -> list[str]:
    plan, allocation = trace.plan_fallback, trace.allocation_fallback
    return [f"one-step plan: {plan}"] * bool(plan) + [f"default model: {allocation}"] * bool(allocation)


def _timeline(trace: Trace, plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("subtask", "answer", "model", ""):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("ms", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    end_s = max([call.end_s for call in trace.calls] + [1e-9])
    for stage in ("decompose", "allocate"):
        _add_router_row(table, [call for call in trace.calls if call.stage == stage], end_s)
    for result in trace.results:
        _add_subtask_row(table, plan, result, end_s)
    return table


def _add_router_row(table: Table, calls: list[CallRecord], end_s: float) -> None:
    if not calls:
        return
    start, end = min(c.start_s for c in calls), max(c.end_s for c in calls)
    bar = _bar(start, end, end_s, "white")
    took_ms, cost = f"{1000 * (end - start):.0f}", usd(total_cost_usd(calls))
    table.add_row(f"({calls[0].stage})", "", short(calls[0].model, 18), bar, took_ms, cost, style="dim")


def _add_subtask_row(table: Table, plan: Plan, result: SubtaskResult, end_s: float) -> None:
    subtask = plan.subtasks[result.id - 1]
    unnamed = [f"#{d}" for d in subtask.depends_on if d not in references(subtask.text)]
    after = f"  after {' '.join(unnamed)}" if unnamed else ""
    bar = _bar(result.start_s, result.end_s, end_s, _LEVEL_COLORS[result.id % len(_LEVEL_COLORS)])
    took_ms = 1000 * (result.end_s - result.start_s)
    text = Text(f"#{result.id} ", style="bold") + short(subtask.text, 20) + Text(after, style="dim")
    table.add_row(
        text, short(result.answer, 14), short(result.model, 18), bar, f"{took_ms:.0f}", usd(result.cost_usd)
    )


def _bar(start_s: float, end_s: float, total_s: float, color: str) -> Text:
    first = round(BAR_WIDTH * start_s / total_s)
    width = max(1, round(BAR_WIDTH * (end_s - start_s) / total_s))
    return Text(" " * min(first, BAR_WIDTH - 1) + "█" * width, style=color)


def short(text: str, limit: int) -> Text:
    """The first `limit` characters of `text` on one line. It is no `str`, in which Rich would read markup."""
    line = " ".join(text.split())
    return Text(line if len(line) <= limit else line[: limit - 1] + "…")


def _summary(trace: Trace) -> str:
    router = trace.cost_usd - trace.worker_cost_usd
    counts = f"{counted(len(trace.results), 'subtask')}, {counted(len(trace.calls), 'call')}"
    return (
        f"{counts}, {1000 * trace.duration_s:.0f} ms "
        f"(of which {1000 * trace.overhead_s:.0f} ms routing); "
        f"workers {usd(trace.worker_cost_usd)} + router {usd(router)} = {usd(trace.cost_usd)}"
    )
