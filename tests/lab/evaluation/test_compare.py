"""`eval compare`, and the files of a report: what they hold, and what they refuse."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.lab.evaluation.desk import EvalOutcome
from r2_serve.lab.evaluation.report.compare import compare_runs
from r2_serve.lab.evaluation.rows import EvalRow
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.reports.export import csv_text, latex, latex_table
from r2_serve.lab.runs import RunError
from r2_serve.types import CallRecord
from tests.support.scripted_evaluation import manifest_of, sums


def run_of(
    directory: Path, right: dict[str, int], *, tasks: range = range(100), cost: str = "1", seed: int = 0
) -> Path:
    """A run in which each policy gets the first tasks right, at one cost for each task."""
    manifest_of(sums(len(tasks)), tuple(right), seed=seed).claim(directory)
    call = CallRecord(stage="execute", model="large", cost_usd=Decimal(cost))
    with JsonlLog(directory / "rows.jsonl") as log:
        for policy, count in right.items():
            for i in tasks:
                outcome = EvalOutcome(answer="x", calls=(call,))
                status = "correct" if i < count else "wrong"
                log.append(EvalRow(policy=policy, task_id=f"sum-{i:03}", status=status, outcome=outcome))
    return directory


def test_policies_that_both_runs_have_are_compared(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"r2": 90, "single:large": 80, "single:small": 5})
    b = run_of(tmp_path / "b", {"r2": 70, "single:large": 80}, cost="2")
    found = compare_runs(a, b, (), (), 0.01)
    assert [(row.policy, row.other) for row in found.rows] == [("r2", "r2"), ("single:large", "single:large")]
    first, second = found.rows
    assert (first.verdict, first.wins, first.losses) == ("better", 20, 0)
    assert first.cost_ratio == pytest.approx(0.5)
    assert first.mcnemar_p is not None
    assert first.holm_p == pytest.approx(2 * first.mcnemar_p)
    assert second.accuracy_difference == 0.0


def test_only_tasks_of_both_runs_count(tmp_path: Path) -> None:
    a = run_of(tmp_path / "a", {"r2": 60})
    b = run_of(tmp_path / "b", {"r2": 60}, tasks=range(50, 150))
    found = compare_runs(a, b, (), (), 0.01)
    assert (found.num_tasks, found.num_left_out) == (50, 100)
    assert found.rows[0].accuracy == found.rows[0].other_accuracy == pytest.approx(10 / 50)


def test_two_policies_of_one_run_are_compared(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {"r2": 90, "single:large": 80, "single:small": 5})
    found = compare_runs(run, run, ("r2",), ("single:large", "single:small"), 0.01)
    assert [row.other for row in found.rows] == ["single:large", "single:small"]
    assert compare_runs(run, run, ("r2",), (), 0.01).rows == ()


def test_seeds_of_one_side_are_means(tmp_path: Path) -> None:
    for seed, right in enumerate((80, 90)):
        run_of(tmp_path / "a" / f"seed-{seed}", {"r2": right}, seed=seed)
    b = run_of(tmp_path / "b", {"r2": 80})
    (row,) = compare_runs(tmp_path / "a", b, (), (), 0.01).rows
    assert row.accuracy_difference == pytest.approx(0.05)
    assert row.mcnemar_p is None
    assert row.verdict == "better"


@pytest.mark.parametrize(
    ("policies", "others", "message"),
    [(("cot:x",), (), "has no policy 'cot:x'; it has r2, "), (("r2",), ("cot:x",), "has no policy 'cot:x'")],
)
def test_unknown_policy_is_named(
    tmp_path: Path, policies: tuple[str, ...], others: tuple[str, ...], message: str
) -> None:
    run = run_of(tmp_path / "a", {"r2": 90, "single:large": 80})
    with pytest.raises(RunError, match=message):
        compare_runs(run, run, policies, others, 0.01)


def test_runs_without_a_common_task_are_refused(tmp_path: Path) -> None:
    a, b = (
        run_of(tmp_path / "a", {"r2": 1}, tasks=range(5)),
        run_of(tmp_path / "b", {"r2": 1}, tasks=range(5, 9)),
    )
    with pytest.raises(RunError, match="no task in common"):
        compare_runs(a, b, (), (), 0.01)


def r2(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_command_prints_and_writes_a_comparison(tmp_path: Path) -> None:
    a, b = run_of(tmp_path / "a", {"r2": 90}), run_of(tmp_path / "b", {"r2": 70}, cost="2")
    files = {name: tmp_path / f"c.{name}" for name in ("json", "csv", "latex")}
    output = r2("compare", a, b, *(part for name, path in files.items() for part in (f"--{name}", path)))
    assert "+20.0 (+13.0, +28.0)" in output
    assert "0.50 (0.50-0.50)" in output
    assert "better" in output
    assert json.loads(files["json"].read_text())["rows"][0]["wins"] == 20
    (line,) = csv.DictReader(files["csv"].read_text().splitlines())
    assert float(line["accuracy_difference_ci95_low"]) < 0.2 < float(line["accuracy_difference_ci95_high"])
    assert r"\begin{tabular}" in files["latex"].read_text()


def test_report_is_written_for_a_paper(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", {"r2": 90, "single:large": 80})
    table, text, pictures = tmp_path / "a.csv", tmp_path / "a.tex", tmp_path / "figures"
    r2("report", run, "--csv", table, "--latex", text, "--figures", pictures)
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [line["policy"] for line in lines] == ["r2", "single:large"]
    assert float(lines[0]["accuracy"]) == 0.9
    assert float(lines[1]["r2_accuracy_difference"]) == pytest.approx(0.1)
    assert text.read_text().count(r"\toprule") == 4, "policies, usage, comparisons and models"
    assert sorted(path.suffix for path in pictures.iterdir()) == [".pdf", ".pdf", ".svg", ".svg"]
    assert (pictures / "words-a-pareto.svg").read_text().startswith("<?xml")
    assert (pictures / "words-a-pareto.pdf").read_bytes().startswith(b"%PDF")


def test_latex_has_no_command_in_a_name() -> None:
    assert latex("a_b & 5 % ~ \\x {µ}") == (r"a\_b \& 5 \% \textasciitilde{} \textbackslash{}x \{\textmu{}\}")
    assert r"a\_b & 1 \\" in latex_table(("p", "n"), [("a_b", "1")], "c")


def test_csv_has_a_column_for_each_bound() -> None:
    text = csv_text([{"a": 1, "x_ci95": (0.1, 0.2), "models": {}}, {"a": 2, "b": "u,v"}])
    assert text == 'a,x_ci95_low,x_ci95_high,b\n1,0.1,0.2,\n2,,,"u,v"\n'
