"""benchmarks/gpu/check.py on the CPU with tiny sizes: every section gives its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

WHEELS = ROOT / "benchmarks" / "gpu" / "wheels.txt"


@pytest.mark.train
def test_sections_of_the_gpu_check_run_on_a_cpu_with_tiny_sizes(tmp_path: Path) -> None:
    names = ["serve-random-100m", "train-random-100m-lora", "zero2"]
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.gpu.check", "--tiny", "--device", "cpu", "--out", out]
    command += ["--only", *names, "--smollm2", tmp_path / "absent"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570, cwd=ROOT, check=False)
    report = json.loads(out.read_text())
    assert done.returncode == 0, report
    assert report["machine"]["card"] and report["machine"]["torch"] and "left_out" in report
    serve, train, zero2 = (report["sections"][name] for name in names)
    assert serve["tokens_per_s"].keys() == {"1", "4"}
    assert all(speed > 0 for speed in serve["tokens_per_s"].values())
    speeds = {f"{method}_{label}_samples_per_s" for method in ("sft", "grpo") for label in ("ours", "trl")}
    assert train.keys() == speeds | {"wall_s"} and all(train[name] > 0 for name in speeds)
    assert zero2["steps"] == 1 and zero2["samples_per_s"] > 0


def test_every_wheel_that_a_bare_machine_lacks_has_a_pinned_version() -> None:
    pins = {
        line.split("==")[0]
        for name in ("constraints-gpu.txt", "constraints.txt")
        for line in (ROOT / name).read_text().splitlines()
        if re.match(r"[a-z0-9-]+==", line)
    }
    wheels = [line for line in WHEELS.read_text().split("\n") if line[:1].isalpha()]
    assert len(wheels) > 50 and set(wheels) <= pins
