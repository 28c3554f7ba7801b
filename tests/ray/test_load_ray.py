"""`r2-serve load` as a user runs it: a local cluster of scripted models, scaled from nothing by the load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r2_serve.lab.load.run_directory import RequestFile, read_timeline
from r2_serve.lab.load.summary import LoadSummary

pytestmark = pytest.mark.ray

WORKLOAD = {
    "name": "few",
    "duration_s": 8,
    "arrivals": {"kind": "constant", "rate_per_s": 2},
    "tasks": {
        "kind": "synthetic",
        "shapes": [
            {"waves": [{"model": "small", "count": 2, "words": [10, 20]}, {"model": "large", "words": 10}]}
        ],
    },
    "slo": {"latency_s": 60},
}


def test_load_on_a_cold_local_cluster_is_answered_and_its_replicas_are_counted(tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(WORKLOAD))
    command = [
        sys.executable,
        "-m",
        "r2_serve.cli",
        "load",
        str(tmp_path / "few.yaml"),
        "--config",
        "scripted",
        "--gpus",
        "8",
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name == "RAY_worker_niceness"
    }
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = LoadSummary.model_validate_json((tmp_path / "run" / "summary.json").read_bytes())
    assert (summary.num_sent, summary.num_ok, summary.num_good) == (16, 16, 16), done.stdout
    assert all(record.num_subtasks == 3 and record.cost_usd for record in RequestFile(tmp_path / "run"))
    timeline = list(read_timeline(tmp_path / "run"))
    assert timeline[0].deployments["m-large/Model"].running == 0
    for name, cold_start_s in (("m-small/Model", 3), ("m-large/Model", 6)):
        use = summary.deployments[name]
        assert use.max_replicas >= 1 and use.gpu_s == use.replica_s > use.starting_s
        assert use.starting_s > cold_start_s - 1.5, "a GPU is paid from when its replica is asked for"
    assert any(sample.queue is not None and sample.queue.running for sample in timeline)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
