"""The list of runs: filters, order, the printed table, JSON, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2_serve.errors import counted
from r2_serve.lab.reports.export import ReportTable
from r2_serve.lab.results.record import FoundRun, Kind, Order, State

COLUMNS = ("run", "kind", "date", "what was run", "figures", "state")
_EARLIEST = datetime.min.replace(tzinfo=UTC)


ORDERS: dict[Order, Callable[[FoundRun], tuple[object, ...]]] = {
    "date": lambda run: (-(run.started or _EARLIEST).timestamp(),),
    "name": lambda run: (run.path,),
    "kind": lambda run: (run.kind or "", run.path),
    "accuracy": lambda run: (run.accuracy is None, -(run.accuracy or 0.0)),
    "cost": lambda run: (run.cost_usd is None, run.cost_usd or 0),
}
"""The newest first, the most accurate first, the cheapest first; runs without a figure come last."""


@dataclass(frozen=True)
class Wanted:
    """Which runs are listed, and in which order."""

    kind: Kind | None = None
    state: State | None = None
    since: datetime | None = None
    words: str = ""
    """Text that the path, what was run or the figures hold, in any case."""
    order: Order = "date"
    is_reversed: bool = False

    def of(self, runs: Iterable[FoundRun]) -> list[FoundRun]:
        """Those of `runs` that are wanted."""
        found = sorted(filter(self._is_wanted, runs), key=ORDERS[self.order])
        return found[::-1] if self.is_reversed else found

    def _is_wanted(self, run: FoundRun) -> bool:
        if self.kind not in (None, run.kind) or self.state not in (None, run.state):
            return False
        if self.since is not None and (run.started or _EARLIEST) < self.since:
            return False
        return self.words.lower() in f"{run.path} {run.what} {run.headline}".lower()


def cells(run: FoundRun) -> tuple[str, ...]:
    """One run in the order of `COLUMNS`."""
    date = run.started.strftime("%Y-%m-%d") if run.started else "-"
    state = f"{run.state}: {run.progress}" if run.progress else run.state
    return run.path, run.kind or "-", date, run.what or "-", run.headline or "-", state


def runs_table(runs: Sequence[FoundRun]) -> ReportTable:
    """The list as a table for papers."""
    records = [run.model_dump(exclude={"pages"}) for run in runs]
    return ReportTable("runs", "Runs.", COLUMNS, [cells(run) for run in runs], records)


def print_runs(runs: Sequence[FoundRun], notes: Sequence[str], console: Console) -> None:
    """Print a row for each run; its texts break into lines, so that they fit any terminal."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("run, kind, date, state", overflow="fold", ratio=2)
    table.add_column("what was run and its figures", ratio=3)
    styles = {"finished": "", "unfinished": "yellow", "broken": "red"}
    for run in runs:
        path, kind, date, what, headline, state = cells(run)
        head = Text(f"{path}\n", style="bold") + Text(f"{kind} {date} ", style="dim")
        table.add_row(head + Text(state, style=styles[run.state]), Text(f"{what}\n{headline}\n"))
    console.print(table)
    for note in (*notes, f"{counted(len(runs), 'run')}."):
        console.print(Text(note))
