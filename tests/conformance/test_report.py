"""The tables of `make conformance`, and what it finds in the traces of a tool loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import report
from tests.conformance.report import BEGIN, END, Cell, tables, write_page
from tests.conformance.sessions import check_sessions
from tests.conformance.stand import TARGETS

REASON = "the client has no function that lists models"


@pytest.fixture(autouse=True)
def _nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "version", lambda package, environment: "1.0")


def cells(**outcomes: str) -> list[Cell]:
    """The same outcome of a feature with every model."""
    return [
        Cell("codex", target, feature, outcome, REASON if outcome == "impossible" else "")
        for feature, outcome in outcomes.items()
        for target in TARGETS
    ]


def row(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith("| codex")]
    return [cell.strip() for cell in lines[-1].strip("|").split("|")]


def test_models_that_do_the_same_share_a_mark_and_reasons_are_numbered() -> None:
    text = tables(cells(plain="works", models="impossible"))
    assert row(text)[:3] == ["codex, Responses", "1.0", "ok"]
    assert row(text)[-1] == "- (1)"
    assert f"1. {REASON}" in text.splitlines()


def test_reasons_of_clients_with_few_checks_are_listed_too() -> None:
    text = tables(
        [Cell("lm_eval", target, "plain", "impossible", "it always sends a seed") for target in TARGETS]
    )
    assert "1. it always sends a seed" in text.splitlines()


def test_model_that_differs_is_named() -> None:
    found = [cell for cell in cells(plain="works") if cell.target != "messages"]
    text = tables([*found, Cell("codex", "messages", "plain", "failed", "x")])
    assert row(text)[2] == "chat ok, responses ok, messages FAILED"


def test_page_is_changed_between_its_marks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


@pytest.mark.parametrize(
    ("states", "outcome"),
    [(["new", "kept"], "works"), (["new", "left"], "failed"), (["new"], "failed"), ([None, None], "failed")],
)
def test_tool_loop_that_leaves_its_model_or_has_one_turn_fails(
    states: list[str | None], outcome: str, tmp_path: Path
) -> None:
    notes = [state and {"state": state, "model": "a", "reason": "its cache is warm"} for state in states]
    traces: list[dict[str, Any]] = [{"query": "codex-r2-tools\nCALL x", "session": note} for note in notes]
    (tmp_path / "1.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    (found,) = check_sessions([Cell("codex", "r2", "tools", "works")], tmp_path)
    assert found.outcome == outcome
