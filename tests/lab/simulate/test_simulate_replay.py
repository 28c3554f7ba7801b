"""Measured cold starts and recorded calls of hosted models, drawn in a simulation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from r2_serve.errors import ConfigError
from r2_serve.files import json_line
from r2_serve.lab.simulate.hardware import Hardware, load_hardware
from r2_serve.lab.simulate.hosted import Replayed
from r2_serve.lab.simulate.simulation import simulate
from r2_serve.scaling.cold_starts import ColdStart
from r2_serve.types import CallRecord, Trace, Usage
from tests.support.simulated import scripted_pool, workload


def test_simulated_starts_take_as_long_as_measured_ones(tmp_path: Path) -> None:
    """The measured starts of the small model take 11 or 21 s; those of other models are not drawn."""
    starts = [ColdStart(app="m-small", replica=f"r{s}", process_s=1, engine_s=s, node_s=99) for s in (10, 20)]
    starts.append(ColdStart(app="m-large", replica="x", engine_s=500))
    (tmp_path / "starts.log").write_text("\n".join(start.line() for start in starts) + "\n")
    (tmp_path / "hw.yaml").write_text("models: {small: {cold_starts: starts.log}}")
    scaling = {"min_replicas": 0, "max_replicas": 1, "upscale_delay_s": 0, "downscale_delay_s": 600}
    config = scripted_pool(tmp_path, small={"autoscaling_config": scaling})

    def first_running_s(seed: int) -> float:
        run = simulate(config, workload(seed=seed, duration_s=5), load_hardware(tmp_path / "hw.yaml"))
        return next(sample.t_s for sample in run.timeline if sample.deployments["m-small/Model"].running)

    assert {round(first_running_s(seed), -1) for seed in range(8)} == {10.0, 20.0}


def traces(directory: Path, calls: list[CallRecord]) -> Path:
    directory.mkdir()
    trace = Trace(request_id="t", model="r2", query="q", calls=tuple(calls))
    (directory / "2026-11-28-1.jsonl").write_text(json_line(trace))
    return directory


def call(tokens: int, latency_s: float, **fields: Any) -> CallRecord:
    usage = Usage(prompt_tokens=10, completion_tokens=tokens)
    return CallRecord(stage="execute", model="small", usage=usage, start_s=5, end_s=5 + latency_s, **fields)


def test_hosted_calls_take_as_long_as_recorded_ones_of_about_their_length(tmp_path: Path) -> None:
    short, long = [call(20, 1.0 + i / 100) for i in range(30)], [call(500, 9.0) for _ in range(30)]
    replayed = Replayed.of(traces(tmp_path / "t", [*short, *long, call(1, 1, outcome="cancelled")]), "small")
    draw = random.Random(0)
    assert all(1 <= replayed.latency_s(20, draw) < 1.31 for _ in range(100))
    assert {replayed.latency_s(600, draw) for _ in range(100)} == {9.0}
    assert replayed.failed_share == 0.0


def test_as_many_hosted_calls_fail_as_did_in_the_traces(tmp_path: Path) -> None:
    calls = [call(20, 1.0, outcome="failed" if i % 4 == 0 else "ok") for i in range(40)]
    assert Replayed.of(traces(tmp_path / "t", calls), "small").failed_share == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="no answered call of model 'large'"):
        Replayed.of(tmp_path / "t", "large")


def test_hosted_model_has_a_speed_or_traces() -> None:
    for hosted in ({"ttft_s": 1}, {"ttft_s": 1, "tokens_per_s": 50, "traces": "t"}):
        with pytest.raises(ValueError, match="give `tokens_per_s` or `traces`, one of them"):
            Hardware.model_validate({"models": {"m": {"hosted": hosted}}})
