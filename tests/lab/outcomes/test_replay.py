"""A replay fits on one half of a book and reports on the other; the fitted gate saves money."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.lab.outcomes.replay import CONFIDENCE, ORACLE, REFERENCE, ROWS
from tests.lab.outcomes import books

runner = CliRunner()


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def run(*arguments: object) -> str:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def replayed(tmp_path: Path, rows: list[dict[str, object]], *options: object) -> dict[str, object]:
    """The figures of a replay of these lines, by the commands that users give."""
    source, prices = (
        books.write(tmp_path / "rows.jsonl.gz", rows),
        books.write_prices(tmp_path / "prices.yaml"),
    )
    book, figures = tmp_path / "book.jsonl", tmp_path / "figures.json"
    run("outcomes", "import", "recorded", source, "--grader", "number", "--prices", prices, "--out", book)
    run("replay", book, "--json", figures, *options)
    found = json.loads(figures.read_text())
    assert isinstance(found, dict)
    return found


def test_fitted_gate_reaches_the_reference_for_a_fraction_of_its_cost(tmp_path: Path) -> None:
    found = replayed(tmp_path, books.lines(240), "--splits", 3, "--reference", "large")
    assert found["tasks"] == found["tasks_compared"] == 240
    assert found["cost_ratio"] < 0.5
    assert found["accuracy_difference"] > -0.03
    assert [row["policy"] for row in found["rows"]] == [row for row in ROWS if row != CONFIDENCE]
    by_name = {row["policy"]: row for row in found["rows"]}
    assert by_name[REFERENCE]["cost_ratio"] == 1
    assert found["gap_closed"] <= 1
    assert by_name[ORACLE]["accuracy"] >= max(row["accuracy"] for row in found["rows"])


@pytest.mark.parametrize("reference", ["tiny", "large"])
def test_small_book_with_missing_replies_is_replayed(tmp_path: Path, reference: str) -> None:
    models = {name: books.SKILL[name] for name in ("tiny", "small", "large")}
    rows = books.lines(100, models, missing=0.1)
    found = replayed(tmp_path, rows, "--splits", 1, "--reference", reference)
    assert found["tasks"] == 100
    assert found["tasks_compared"] == sum(row.get("model") == reference for row in rows) < 100
    assert found["accuracy_difference"] > -0.1
    assert found["cost_ratio"] <= 1.01
    by_name = {row["policy"]: row for row in found["rows"]}
    replies = next(model for model in found["models"] if model["model"] == reference)
    assert by_name[REFERENCE]["accuracy"] == pytest.approx(replies["accuracy"], abs=0.1)


def test_promise_is_reported_with_its_splits(tmp_path: Path) -> None:
    found = replayed(tmp_path, books.lines(160), "--splits", 1, "--target", "within 3 points of large")
    assert found["reference"] == "large"
    assert found["promises_kept"] == 1


def test_figures_are_those_of_the_first_version_of_the_search(tmp_path: Path) -> None:
    """The search was rewritten for speed; the figures of the gate at any cost are those of the slow one."""
    found = replayed(tmp_path, books.lines(240), "--splits", 2, "--reference", "large")
    figures = {row["policy"]: (row["accuracy"], row["cost_ratio"]) for row in found["rows"]}
    assert figures["gate at any cost"] == pytest.approx((0.9583333, 0.7323173), abs=1e-6)
    assert figures["agreement gate"] == pytest.approx((0.9625000, 0.2650202), abs=1e-6)


def test_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    first, second = (replayed(tmp_path, books.lines(80), "--splits", 1) for _ in range(2))
    assert first == second


def test_page_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    replayed(tmp_path, books.lines(80), "--splits", 1, "--html", page)
    assert "fitted gate" in page.read_text()
    assert "<script" not in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference", "gpt-9"], "no model 'gpt-9'"),
        (["--target", "cheap"], "within 1 point of MODEL"),
        (["--target", "within 1 point of large", "--reference", "tiny"], "the target names 'large'"),
    ],
)
def test_wrong_option_is_named(tmp_path: Path, options: list[str], message: str) -> None:
    source, book = books.write(tmp_path / "rows.jsonl", books.lines(40)), tmp_path / "book.jsonl"
    run("outcomes", "import", "recorded", source, "-g", "number", "--out", book)
    result = runner.invoke(app, ["replay", str(book), *options])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_description_counts_missing_replies(tmp_path: Path) -> None:
    source, book = books.write(tmp_path / "r.jsonl", books.lines(50, missing=0.2)), tmp_path / "book.jsonl.gz"
    run("outcomes", "import", "recorded", source, "-g", "number", "--out", book)
    assert "50 tasks" in " ".join(run("outcomes", "describe", book).split())


def test_replay_is_written_for_a_paper(tmp_path: Path) -> None:
    table, text, pictures = tmp_path / "a.csv", tmp_path / "a.tex", tmp_path / "figures"
    files = ("--csv", table, "--latex", text, "--figures", pictures)
    replayed(tmp_path, books.lines(60), "--splits", 1, "--reference", "large", *files)
    assert "accuracy_difference_ci95_low" in table.read_text().splitlines()[0]
    assert "fitted gate" in text.read_text()
    assert {path.suffix for path in pictures.iterdir()} == {".svg", ".pdf"}


def test_table_fits_80_columns_and_no_figure_is_cut(tmp_path: Path) -> None:
    replayed(tmp_path, books.lines(60), "--splits", 1, "--reference", "large")
    text = run("replay", tmp_path / "book.jsonl", "--splits", 1, "--reference", "large")
    table = text[text.index("policy") : text.index("dim:")]
    assert "…" not in table
    assert max(map(cell_len, table.splitlines())) <= 80
