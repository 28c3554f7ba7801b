"""The simulator against real runs of `r2-serve load` on local clusters.

Their summaries are in benchmarks/simulation/real. docs/simulation.md says how they were made and has the
whole table.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from r2_serve.cli import app
from r2_serve.lab.simulate.compare import compare, read_summary
from tests import ROOT

BENCHMARKS = ROOT / "benchmarks" / "simulation"
PROMISED = 0.15
FIGURES = (
    "latency, p50, s",
    "latency, p95, s",
    "replica-seconds of m-small/Model",
    "replica-seconds of m-large/Model",
)


@pytest.mark.parametrize("run", ["steady", "ramp", "gamma", "bursts", "ramp-plan-ahead", "bursts-plan-ahead"])
def test_latency_and_replica_seconds_are_those_of_the_real_run(run: str, tmp_path: Path) -> None:
    workload, _, policy = run.partition("-")
    config = ["-c", str(BENCHMARKS / "plan-ahead.yaml")] if policy else []
    files = [str(BENCHMARKS / f"{workload}.yaml"), "--hardware", str(BENCHMARKS / "hardware.yaml")]
    done = CliRunner().invoke(app, ["simulate", *files, *config, "--out", str(tmp_path / run)])
    assert done.exit_code == 0, done.output
    errors = {
        d.name: d.error
        for d in compare(read_summary(BENCHMARKS / "real" / run), read_summary(tmp_path / run))
    }
    assert {name: errors[name] for name in FIGURES} == pytest.approx(
        dict.fromkeys(FIGURES, 0.0), abs=PROMISED
    )
