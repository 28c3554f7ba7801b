"""`make demo` in small: its command, its policies, its summary file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from r2_serve.errors import EngineUnavailable
from r2_serve.grading.graders import Grader
from r2_serve.lab.demo import Domain, measure
from r2_serve.lab.evaluation.runner import Examiner
from tests.support.scripted_evaluation import asker_of, configs, engines_of, scripts, setting, sums


@pytest.mark.ray
@pytest.mark.smoke
def test_demo_routes_held_out_commands_over_http_and_writes_its_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r2_serve.cli", "demo", "--domain", "scan", "--queries", "20"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scan-168k, alone" in done.stdout and "One query:" in done.stdout
    scan = json.loads((tmp_path / "summary.json").read_text())["scan"]
    assert scan["queries"] == 20 and scan["errors"] == 0
    assert scan["accuracy"] >= 0.8
    assert 0 < scan["worker_cost_ratio"] <= 0.05 < scan["total_cost_ratio"] < 1


async def test_summary_holds_every_policy_and_its_costs() -> None:
    domain = Domain("sums", "r2", sums, reference="same plans")
    examiner = Examiner(asker_of(engines_of(scripts())), Grader(), setting())
    summary = await measure(domain, examiner, configs()[0], 6, Console(quiet=True))
    rows = {row["name"]: row for row in summary["rows"]}
    names = ["r2, routed", "small, same plans", "large, same plans", "small, alone", "large, alone"]
    assert list(rows) == names
    assert (summary["queries"], summary["accuracy"], summary["errors"]) == (6, 1.0, 0)
    assert summary["reference"] == "large, same plans"
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        **dict.fromkeys(names, 1.0),
        "small, alone": 4 / 6,
    }
    assert rows["r2, routed"]["calls"] == {"small": 12, "large": 6, "decomposer": 6, "allocator": 6}
    assert rows["large, same plans"]["calls"] == {"large": 18}
    assert (
        float(rows["r2, routed"]["router_cost_usd"])
        > 0
        == float(rows["large, same plans"]["router_cost_usd"])
    )
    assert summary["worker_cost_ratio"] == 1.0 < summary["total_cost_ratio"]


async def test_failed_query_counts_as_wrong_and_its_message_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    down = [EngineUnavailable("no such model", 99.0)]
    broken = scripts(small=down, large=down)
    domain = Domain("sums", "r2", sums, reference="alone")
    examiner = Examiner(asker_of(engines_of(broken)), Grader(), setting())
    summary = await measure(domain, examiner, configs()[0], 2, Console(width=200))
    assert (summary["accuracy"], summary["errors"]) == (0.0, 2)
    assert "no such model" in capsys.readouterr().out
