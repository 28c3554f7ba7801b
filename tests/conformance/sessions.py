"""A tool loop over the routed model stays on one model: read from the traces of the router."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conformance.report import FAILED, Cell
from tests.conformance.stand import ROUTED

LOOPS = ("tools", "tools_streamed")


def check_sessions(cells: Sequence[Cell], traces: Path) -> list[Cell]:
    """The cells, where those of a tool loop over the routed model fail if it changed its model."""
    written = [json.loads(line) for path in sorted(traces.glob("*.jsonl")) for line in path.open()]
    return [_checked(cell, written) for cell in cells]


def _checked(cell: Cell, written: list[dict[str, Any]]) -> Cell:
    if (cell.target, cell.outcome) != (ROUTED, "works") or cell.feature not in LOOPS:
        return cell
    note = f"{cell.client}-{cell.target}-{cell.feature}\n"
    notes = [trace.get("session") or {} for trace in written if note in trace["query"]]
    states = [each.get("state") for each in notes]
    if len(notes) < 2 or states != ["new", *["kept"] * (len(notes) - 1)]:
        return replace(cell, outcome=FAILED, reason=f"the turns of the tool loop: {notes}")
    return replace(cell, reason=f"{len(notes)} turns on {notes[0]['model']}: {notes[-1]['reason']}")
