"""`make demo` in small: its command, its table, its summary file."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from r2_serve.lab.demo import summarize, wilson_95
from r2_serve.lab.domains import Task
from r2_serve.types import CallRecord, Plan, Trace, Usage


@pytest.mark.ray
def test_the_demo_routes_held_out_commands_over_http_and_writes_its_summary(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "r2_serve.cli",
        "demo",
        "--domain",
        "scan",
        "--queries",
        "20",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scan-168k, alone" in done.stdout and "One query:" in done.stdout
    scan = json.loads((tmp_path / "summary.json").read_text())["scan"]
    assert scan["queries"] == 20 and scan["errors"] == 0
    assert scan["accuracy"] >= 0.8
    assert 0 < scan["worker_cost_ratio"] <= 0.05 < scan["total_cost_ratio"] < 1


def test_a_failed_query_counts_as_wrong_and_its_message_is_kept() -> None:
    from r2_serve.lab.demo import Reply

    task = Task(id="t", query="1 + 1", gold="2", reference_plan=Plan.single("1 + 1"))
    call = CallRecord(
        stage="execute",
        model="small",
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        cost_usd=Decimal("0.5"),
    )
    trace = Trace(
        request_id="t",
        model="r2",
        query="1 + 1",
        calls=(call,),
        cost_usd=Decimal("0.75"),
        worker_cost_usd=Decimal("0.5"),
    )
    row = summarize("routed", [task, task], [Reply("2", trace, 0.1), Reply(None, None, 0.2, "HTTP 502: no")])
    assert (row.accuracy, row.errors) == (0.5, ("HTTP 502: no",))
    assert (row.worker_cost_usd, row.router_cost_usd, row.calls, row.tokens) == (
        Decimal("0.5"),
        Decimal("0.25"),
        {"small": 1},
        {"small": 5},
    )


def test_the_confidence_interval_is_wilsons() -> None:
    low, high = wilson_95(15, 20)
    assert (round(low, 3), round(high, 3)) == (0.531, 0.888)
