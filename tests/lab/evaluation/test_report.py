"""The figures of a report, from rows written by hand, and the page that shows them."""

from __future__ import annotations

import io
import re
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from r2_serve.lab.evaluation.desk import EvalOutcome
from r2_serve.lab.evaluation.manifest import PoolModel
from r2_serve.lab.evaluation.report.cells import ACCURACY_COLUMNS, accuracy_cells, notes
from r2_serve.lab.evaluation.report.figures import (
    RunReport,
    report_of,
)
from r2_serve.lab.evaluation.report.page import page
from r2_serve.lab.evaluation.report.policy import PolicyReport
from r2_serve.lab.evaluation.report.table import broken_name, print_overview, print_report
from r2_serve.lab.evaluation.rows import EvalRow, RowStatus
from r2_serve.lab.jsonl import JsonlLog
from r2_serve.lab.runs import RunError
from r2_serve.types import CallRecord, Usage
from tests.support.scripted_evaluation import manifest_of, sums

HOSTED = PoolModel(
    name="large", is_hosted=True, group="llm", usd_per_mtok_in=Decimal(1), usd_per_mtok_out=Decimal(2)
)
LOCAL = PoolModel(
    name="small", is_hosted=False, group="slm", usd_per_mtok_in=Decimal(1), usd_per_mtok_out=Decimal(2)
)


def call(model: str, cost: str, stage: Any = "execute") -> CallRecord:
    return CallRecord(
        stage=stage, model=model, usage=Usage(prompt_tokens=3, completion_tokens=1), cost_usd=Decimal(cost)
    )


def row(policy: str, task: int, status: RowStatus, *calls: CallRecord, **outcome: Any) -> EvalRow:
    made = EvalOutcome(answer=None if status == "failed" else "x", calls=calls, **outcome)
    return EvalRow(policy=policy, task_id=f"sum-{task}", status=status, outcome=made)


def write(directory: Path, rows: list[EvalRow], *policies: str, num_tasks: int = 4) -> RunReport:
    manifest_of(sums(num_tasks), policies, models=(LOCAL, HOSTED)).claim(directory)
    with JsonlLog(directory / "rows.jsonl") as log:
        for each in rows:
            log.append(each)
    return report_of(directory)


def policy_of(report: RunReport, name: str) -> PolicyReport:
    return next(policy for policy in report.policies if policy.policy == name)


def test_everything_but_correct_counts_as_not_correct_and_is_listed(tmp_path: Path) -> None:
    statuses: list[RowStatus] = ["correct", "wrong", "unparsed", "ungradable", "timeout", "error", "failed"]
    report = write(tmp_path, [row("r2", i, status) for i, status in enumerate(statuses)], "r2", num_tasks=8)
    policy = policy_of(report, "r2")
    assert policy.statuses == {**dict.fromkeys(statuses, 1), "missing": 1}
    assert policy.accuracy == 1 / 8
    assert any("NOT COMPLETE: 1 " in note for note in notes(report))


def test_costs_are_exact_and_split_by_payee_and_purpose(tmp_path: Path) -> None:
    calls = (
        call("small", "0.1", "decompose"),
        call("small", "0.2", "allocate"),
        call("small", "0.4"),
        call("large", "0.8"),
    )
    policy = policy_of(write(tmp_path, [row("r2", 1, "failed", *calls)], "r2"), "r2")
    assert (policy.api_cost_usd, policy.total_cost_usd) == (Decimal("0.8"), Decimal("1.5"))
    assert (policy.worker_cost_usd, policy.router_cost_usd) == (Decimal("1.2"), Decimal("0.3"))
    assert {
        name: (use.num_calls, use.usage.total_tokens, use.cost_usd) for name, use in policy.models.items()
    } == {
        "small": (3, 12, Decimal("0.7")),
        "large": (1, 4, Decimal("0.8")),
    }


def test_shapes_and_shares_describe_the_plans_that_ran(tmp_path: Path) -> None:
    shaped = {
        "num_subtasks": 4,
        "width": 3,
        "depth": 2,
        "subtask_models": ("small", "small", "small", "large"),
    }
    rows = [
        row("r2", 1, "correct", call("small", "1"), call("large", "1"), latency_s=2.0, **shaped),
        row("r2", 2, "wrong", latency_s=4.0),
    ]
    policy = policy_of(write(tmp_path, rows, "r2"), "r2")
    assert (policy.mean_subtasks, policy.mean_width, policy.mean_depth) == (4, 3, 2)
    assert (policy.share("small"), policy.share("large"), policy.share("other")) == (0.75, 0.25, 0.0)
    assert (policy.latency_p50_s, policy.latency_p95_s) == (pytest.approx(3.0), pytest.approx(3.9))


def four_policies(directory: Path) -> RunReport:
    """r2: 3 of 4 at 1 USD a task. Cheap: 1 of 4 at 0.5. Dear: 4 of 4 at 4. Bad: 1 of 4 at 2."""
    right = {"r2": 3, "single:small": 1, "single:large": 4, "cot:large": 1}
    costs = {"r2": "1", "single:small": "0.5", "single:large": "4", "cot:large": "2"}
    rows = [
        row(name, i, "correct" if i <= right[name] else "wrong", call("large", costs[name]))
        for name in right
        for i in range(1, 5)
    ]
    return write(directory, rows, *right)


def test_r2_is_compared_with_each_baseline(tmp_path: Path) -> None:
    comparisons = {comparison.baseline: comparison for comparison in four_policies(tmp_path).comparisons}
    assert set(comparisons) == {"single:small", "single:large", "cot:large"}
    assert comparisons["single:large"].total_cost_reduction == pytest.approx(0.75)
    assert comparisons["single:large"].accuracy_difference == pytest.approx(-0.25)
    assert comparisons["single:small"].total_cost_reduction == pytest.approx(-1.0)
    assert comparisons["single:large"].api_cost_reduction == pytest.approx(0.75)
    low, high = comparisons["cot:large"].accuracy_difference_ci95
    assert low < 0.5 < high


def test_cost_at_equal_accuracy_is_that_of_the_cheapest_mixture(tmp_path: Path) -> None:
    equal = four_policies(tmp_path).at_equal_accuracy
    assert equal is not None
    assert equal.mixture == {"single:large": pytest.approx(2 / 3), "single:small": pytest.approx(1 / 3)}
    assert equal.cost_usd / 4 == pytest.approx(2 / 3 * 4 + 1 / 3 * 0.5)
    assert equal.cost_reduction == pytest.approx(1 - 4 / equal.cost_usd)


def test_policy_that_gets_nothing_right_is_neither_on_the_front_nor_in_a_mixture(tmp_path: Path) -> None:
    costs = {"r2": "1", "single:small": "0.1", "single:large": "2"}
    statuses: dict[str, tuple[RowStatus, RowStatus]] = {
        "r2": ("correct", "wrong"),
        "single:small": ("failed", "failed"),
        "single:large": ("correct", "correct"),
    }
    rows = [
        row(name, i, statuses[name][i], call("large", cost)) for name, cost in costs.items() for i in range(2)
    ]
    report = write(tmp_path, rows, *costs, num_tasks=2)
    assert report.pareto == ("r2", "single:large")
    assert report.at_equal_accuracy is not None
    assert report.at_equal_accuracy.mixture == {"single:large": 1.0}


def test_without_a_baseline_as_good_there_is_no_figure_at_equal_accuracy(tmp_path: Path) -> None:
    rows = [row("r2", 1, "correct", call("small", "1")), row("single:small", 1, "wrong", call("small", "1"))]
    report = write(tmp_path, rows, "r2", "single:small")
    assert report.at_equal_accuracy is None
    assert any("reaches r2's accuracy" in note for note in notes(report))


def test_pareto_front_leaves_out_dominated_policies(tmp_path: Path) -> None:
    assert four_policies(tmp_path).pareto == ("single:small", "r2", "single:large")


def test_verdict_needs_proof_that_a_loss_is_below_the_margin(tmp_path: Path) -> None:
    right = {"r2": 60, "single:large": 62, "single:small": 20, "cot:large": 100}
    rows = [
        row(name, i, "correct" if i < n else "wrong", call("large", "1"))
        for name, n in right.items()
        for i in range(100)
    ]
    report = write(tmp_path, rows, *right, num_tasks=100)
    assert {c.baseline: c.verdict for c in report.comparisons} == {
        "single:large": "undecided",
        "single:small": "better",
        "cot:large": "worse",
    }
    assert {c.baseline: c.verdict for c in report_of(tmp_path, margin=0.1).comparisons} == {
        "single:large": "not worse",
        "single:small": "better",
        "cot:large": "worse",
    }


def test_cheapest_rival_is_the_cheapest_within_the_margin(tmp_path: Path) -> None:
    right = {"r2": 60, "single:large": 100, "single:small": 20, "all:small": 59, "cot:large": 58}
    costs = {"r2": "2", "single:large": "8", "single:small": "0.1", "all:small": "3", "cot:large": "0.5"}
    rows = [
        row(name, i, "correct" if i < n else "wrong", call("large", costs[name]))
        for name, n in right.items()
        for i in range(100)
    ]
    report = write(tmp_path, rows, *right, num_tasks=100)
    assert report.cheapest_rival == "all:small"
    assert any("within 1 point of r2's accuracy is all:small" in note for note in notes(report))
    assert any("0.67 (0.67-0.67) times its total cost" in note for note in notes(report))
    assert report_of(tmp_path, margin=0.02).cheapest_rival == "cot:large"


def seeds(directory: Path) -> Path:
    """Three seeds of four tasks: r2 gets 1, 2 and 3 right, the baseline always 2."""
    for seed in range(3):
        run = directory / f"seed-{seed}"
        manifest_of(sums(4), ("r2", "single:large"), models=(LOCAL, HOSTED), seed=seed).claim(run)
        right = {"r2": seed + 1, "single:large": 2}
        with JsonlLog(run / "rows.jsonl") as log:
            for name, count in right.items():
                for i in range(4):
                    log.append(row(name, i, "correct" if i < count else "wrong", call("large", "1")))
    return directory


def test_runs_of_several_seeds_are_one_report(tmp_path: Path) -> None:
    report = report_of(seeds(tmp_path))
    policy = policy_of(report, "r2")
    assert report.seeds == (0, 1, 2)
    assert policy.accuracy == 0.5
    assert policy.accuracy_by_seed == (0.25, 0.5, 0.75)
    assert policy.num_tasks == 12
    (comparison,) = report.comparisons
    assert comparison.num_tasks == 4  # a task is one task, however many seeds answered it
    assert comparison.mcnemar_p is None
    assert any("standard deviation of 25 points" in note for note in notes(report))
    assert "3 seeds" in printed(report)


def test_runs_that_differ_in_more_than_their_seed_are_not_joined(tmp_path: Path) -> None:
    seeds(tmp_path)
    manifest_of(sums(4), ["r2"], models=(LOCAL,), seed=7).claim(tmp_path / "seed-7")
    with pytest.raises(RunError, match=r"differs from .* in more than its seed \(models\)"):
        report_of(tmp_path)


def test_same_rows_give_the_same_page_to_the_byte(tmp_path: Path) -> None:
    report = four_policies(tmp_path)
    assert page([report]) == page([report_of(tmp_path)])


def test_several_runs_are_listed_one_per_line(tmp_path: Path) -> None:
    reports = [four_policies(tmp_path / "a"), four_policies(tmp_path / "b")]
    console = Console(width=80, record=True, file=io.StringIO())
    print_overview(reports, console)
    lines = [line for line in console.export_text().splitlines() if line.startswith("words sums")]
    assert [line.split()[2:] for line in lines] == [
        ["75.0", "%", "25.0-100.0", "single:large", "100.0", "%", "25.0", "%"]
    ] * 2
    html = page(reports)
    assert all(f'href="#run-{i}"' in html and f'id="run-{i}"' in html for i in (1, 2))
    assert 'href="#run' not in page(reports[:1])


class Outside(HTMLParser):
    """Whatever a page would fetch, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.num_svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_svgs += tag == "svg"
        named = dict(attrs)
        targets = [named.get(name) or "" for name in ("src", "href", "xlink:href", "data")]
        self.fetched += [target for target in targets if target and not target.startswith("#")]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object") else []


def test_page_is_self_contained(tmp_path: Path) -> None:
    html = page([four_policies(tmp_path)])
    outside = Outside()
    outside.feed(html)
    assert outside.fetched == []
    assert outside.num_svgs == 2
    assert not re.search(r"url\((?!#)|@import", html)


def test_page_escapes_names_that_users_chose(tmp_path: Path) -> None:
    manifest_of(sums(1), ["r2"], data="<script>alert(1)</script>").claim(tmp_path)
    html = page([report_of(tmp_path)])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def printed(report: RunReport, *, is_brief: bool = False, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(report, console, is_brief=is_brief)
    return console.export_text()


def test_tables_show_every_policy_and_model(tmp_path: Path) -> None:
    text = printed(four_policies(tmp_path))
    assert all(text.count(name) >= 4 for name in ("single:small", "single:large", "cot:large"))
    assert "75.0 %" in text


def test_tables_fit_80_columns_and_no_figure_is_cut(tmp_path: Path) -> None:
    names = (
        "r2",
        "single:words-280k",
        "datashunt:words-22k,words-280k",
        "cascade:words-5k,words-22k,words-48k,words-280k",
    )
    shaped = {
        "num_subtasks": 16,
        "width": 12,
        "depth": 14,
        "subtask_models": ("small",) * 16,
        "latency_s": 1234.5,
    }
    rows = [
        row(name, i, "wrong", *(call("large", "0.0123"),) * 99, **shaped)
        for name in names
        for i in range(300)
    ]
    report = write(tmp_path, rows, *names, num_tasks=300)
    wide, narrow = printed(report, width=300), printed(report)
    assert max(cell_len(line) for line in narrow.splitlines()) <= 80
    assert "…" not in narrow
    assert set(re.findall(r"[$%\d.,]*\d[%\d.,]*", wide)) <= set(re.findall(r"[$%\d.,]*\d[%\d.,]*", narrow))


def test_long_names_break_after_commas() -> None:
    assert broken_name("cascade:a,b") == "cascade:a,b"
    assert broken_name("cascade:words-5k,words-22k,words-48k") == "cascade:words-5k,\n  words-22k,words-48k"
    assert broken_name("final-only:qwen2.5-3b,gpt-4o") == "final-only:\n  qwen2.5-3b,gpt-4o"


def test_brief_report_is_one_table_and_the_notes(tmp_path: Path) -> None:
    report = four_policies(tmp_path)
    whole, brief = printed(report), printed(report, is_brief=True)
    assert whole.count("single:small") > brief.count("single:small") > 0
    assert all(note in " ".join(brief.split()) for note in map(" ".join, map(str.split, notes(report))))


def test_costs_are_relative_to_the_largest_model_or_to_the_chosen_policy(tmp_path: Path) -> None:
    report = four_policies(tmp_path)
    assert report.reference == "single:large"
    other = report_of(tmp_path, "cot:large")
    assert other.reference == "cot:large"
    place = ACCURACY_COLUMNS.index("% of ref")
    shares = [accuracy_cells(policy, other.reference_report)[place] for policy in other.policies]
    assert shares == ["50.0 %", "25.0 %", "200.0 %", "100.0 %"]
    with pytest.raises(RunError, match=r"no policy 'cot:huge' in the run.*it has r2, "):
        report_of(tmp_path, "cot:huge")


def test_free_policy_is_no_reference_by_default(tmp_path: Path) -> None:
    names = ("single:large", "cot:large", "tot:large")
    costs: dict[str, tuple[CallRecord, ...]] = {
        "single:large": (),
        "cot:large": (call("large", "1"),),
        "tot:large": (call("large", "2"),),
    }
    report = write(tmp_path, [row(name, 1, "wrong", *costs[name]) for name in names], *names)
    assert report.reference == "cot:large"


def test_api_cost_at_equal_accuracy_counts_hosted_models_alone(tmp_path: Path) -> None:
    rows = [
        row("r2", 1, "correct", call("large", "1"), call("small", "9")),
        row("single:large", 1, "correct", call("large", "4")),
    ]
    report = write(tmp_path, rows, "r2", "single:large")
    assert report.at_equal_accuracy is not None
    assert report.at_equal_accuracy_api is not None
    assert (report.at_equal_accuracy.cost_reduction, report.at_equal_accuracy_api.cost_reduction) == (
        -1.5,
        0.75,
    )


def test_failures_are_listed_with_a_reason(tmp_path: Path) -> None:
    failed = row("single:small", 1, "failed").model_copy(update={"detail": "EngineRefused: too long"})
    report = write(tmp_path, [failed], "single:small", "single:large")
    assert any(
        "Failed under single:small, for example: EngineRefused: too long" in note for note in notes(report)
    )


def test_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        report_of(tmp_path)
