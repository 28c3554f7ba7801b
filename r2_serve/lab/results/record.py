"""What `r2-serve runs` says of a run."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from r2_serve.types import Record

Kind = Literal["eval", "load", "simulate", "experiment", "replay", "ladder", "demo", "train"]
State = Literal["finished", "unfinished", "broken"]
Order = Literal["date", "name", "kind", "accuracy", "cost"]
"""The keys by which runs can be ordered."""


class FoundRun(Record):
    """A run on disk."""

    path: str
    """Directory of the run, or the file of a replay, below the directory that was searched."""
    kind: Kind | None
    """None for a directory that cannot be read."""
    state: State
    progress: str = ""
    """How far an unfinished run is, or what is wrong with a broken one."""
    started: datetime | None = None
    what: str = ""
    """What was run: the benchmark, the workload, the book, the pool."""
    headline: str = ""
    """The figures that it is judged by, in words."""
    accuracy: float | None = None
    """Share of right answers: of `r2`, or of the kept router. Share in time for loads."""
    cost_usd: Decimal | None = None
    """Cost of all model calls behind `accuracy`."""
    cost_ratio: float | None = None
    """The cost divided by the reference's."""
    pages: tuple[str, ...] = ()
    """Its HTML pages, then its figures, below the directory that was searched."""
