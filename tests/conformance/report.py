"""The results of the clients: as tables for docs/conformance.md, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.conformance.installation import version
from tests.conformance.registry import CLIENTS, FEATURES, Client
from tests.conformance.stand import KINDS, ROUTED

BEGIN, END = "<!-- written by make conformance -->", "<!-- end of what make conformance writes -->"
FAILED, NOT_RUN = "failed", "not run"


@dataclass(frozen=True)
class Cell:
    """One feature of one client with one model."""

    client: str
    target: str
    feature: str
    outcome: str
    """`works`, `impossible`, `failed` or `not run`."""
    reason: str = ""
    """Why it is impossible or failed; what a check saw."""
    took_s: float = 0.0


class Notes:
    """The reasons why something is impossible, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def mark(self, cell: Cell | None) -> str:
        """The text of a cell: `ok`, or `-` with the number of the reason."""
        if cell is None:
            return ""
        if cell.outcome != "impossible":
            return {"works": "ok"}.get(cell.outcome, cell.outcome.upper())
        if cell.reason not in self.reasons:
            self.reasons.append(cell.reason)
        return f"- ({self.reasons.index(cell.reason) + 1})"


def tables(cells: Sequence[Cell]) -> str:
    """The tables of the clients that ran: routed, pass-through, other clients, schema."""
    found = {(cell.client, cell.target, cell.feature): cell for cell in cells}
    ran = [client for client in CLIENTS if any(cell.client == client.name for cell in cells)]
    whole = [client for client in ran if client.is_agent]
    others = [client for client in ran if not client.is_agent and client.name != "schema"]
    notes, lines = Notes(), list[str]()
    for title, targets in ((f"The routed model `{ROUTED}`", [ROUTED]), ("Pass-through", list(KINDS))):
        if whole and any(cell.target in targets for cell in cells):
            lines += [f"### {title}", "", *_table(whole, list(FEATURES), targets, found, notes), ""]
    if others:
        features = ["plain", "streamed", "usage", "errors"]
        lines += ["### Other clients", "", *_table(others, features, [ROUTED, *KINDS], found, notes)]
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(notes.reasons, 1))]
    if schema := [cell for cell in cells if cell.client == "schema"]:
        lines += ["", "### Schema", "", "| schema | outcome | |", "|---|---|---|"]
        lines += [f"| {cell.feature} | {notes.mark(cell)} | {cell.reason} |" for cell in schema]
    return "\n".join(lines).strip()


def _table(
    clients: Iterable[Client],
    features: Sequence[str],
    targets: Sequence[str],
    found: dict[tuple[str, str, str], Cell],
    notes: Notes,
) -> list[str]:
    titles = ["client", "version", *(FEATURES[feature] for feature in features)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for client in clients:
        cells = [
            _joined({target: notes.mark(found.get((client.name, target, feature))) for target in targets})
            for feature in features
        ]
        row = [client.label, version(client.package, client.environment), *cells]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _joined(marks: dict[str, str]) -> str:
    """One text if all models do the same, else one for each."""
    if len(set(marks.values())) == 1:
        return next(iter(marks.values()))
    return ", ".join(f"{target} {mark}" for target, mark in marks.items())


def write_json(path: Path, cells: Sequence[Cell], date: str) -> None:
    """All cells with their reasons, and the versions of the clients."""
    ran = {cell.client for cell in cells}
    versions = {
        client.name: version(client.package, client.environment) for client in CLIENTS if client.name in ran
    }
    whole = {"date": date, "versions": versions, "cells": [asdict(cell) for cell in cells]}
    path.write_text(json.dumps(whole, indent=1) + "\n")


def write_page(page: Path, text: str) -> None:
    """Puts `text` between the two marks of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
