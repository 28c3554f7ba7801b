"""`r2-train fit` writes a gate as JSON; a changed price or pool needs no more than another fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app as serve_app
from r2_serve.errors import BookError
from r2_serve.gates.stored import read_policy
from r2_serve.lab.outcomes.book import read_book
from r2_serve.lab.outcomes.goals import run_policy
from r2_serve.lab.outcomes.table import table_of
from r2_serve.router.fitted_plan import read_fitted_plan
from r2_train.cli import app
from tests.lab.outcomes import books

runner = CliRunner()


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("books")
    source = books.write(place / "rows.jsonl", books.lines(200))
    prices, found = books.write_prices(place / "prices.yaml"), place / "book.jsonl"
    arguments = ["outcomes", "import", "recorded", source, "-g", "number", "--prices", prices, "-o", found]
    result = runner.invoke(serve_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return found


def fitted(book: Path, out: Path, *options: str) -> str:
    result = runner.invoke(app, ["fit", str(book), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_stored_gate_answers_as_it_was_fitted(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "gate.json"
    fitted(book, out, "--reference", "large")
    policy, table = read_policy(out).policy, table_of(read_book(book))
    answers = run_policy(policy, table)
    reference = table.place("large")
    assert answers.mean_cost_usd < 0.5 * table.mean_cost_usd[reference]
    assert answers.accuracy > table.accuracy[reference] - 0.03
    assert json.loads(out.read_text())["policy"]["reference"] == "large"


def test_model_that_became_dear_is_not_asked_first(book: Path, tmp_path: Path) -> None:
    prices, out = tmp_path / "prices.yaml", tmp_path / "gate.json"
    prices.write_text("tiny: [500, 500]\nsmall: [0.1, 0.2]\nmiddle: [0.5, 1]\nlarge: [5, 15]\n")
    fitted(book, out, "--reference", "large", "--prices", str(prices))
    policy = read_policy(out).policy
    assert all(gate.order[0] != "tiny" for gate in policy.gates)
    assert (policy.expected_cost_ratio or 0) < 1


def test_removed_model_is_not_asked(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "gate.json"
    fitted(book, out, "--reference", "large", "--without", "tiny")
    assert all("tiny" not in gate.models for gate in read_policy(out).policy.gates)


def test_promise_falls_back_to_the_reference_where_nothing_can_be_proven(tmp_path: Path, book: Path) -> None:
    out = tmp_path / "gate.json"
    fitted(book, out, "--target", "within 0.1 points of large", "--confidence", "0.99")
    policy = read_policy(out).policy
    assert policy.reference == "large"
    assert (policy.expected_cost_ratio or 0) <= 1


def test_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(BookError, match=r"other\.json is no fitted policy"):
        read_policy(path)


def test_plan_auto_is_fitted_on_a_book_of_both_ways(book: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    said = fitted(book, out, "--planned", "small", "--direct", "large")
    assert "tasks are planned" in said and "plan_file" in said
    assert read_fitted_plan(str(out)).value >= 0
    assert json.loads(out.read_text())["direct"] == "large"


def test_one_way_alone_fits_nothing(book: Path, tmp_path: Path) -> None:
    options = ["fit", str(book), "--out", str(tmp_path / "plan.json"), "--planned", "small"]
    result = runner.invoke(app, options)
    assert result.exit_code == 2 and "belong together" in result.output
