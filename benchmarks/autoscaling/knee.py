"""The knee of each model of a hardware file: the number of calls at which a replica gives most for its delay.

    python -m benchmarks.autoscaling.knee benchmarks/autoscaling/simulated/hardware.yaml

A closed loop keeps N calls in progress on one simulated replica. The knee is the N with the greatest power,
throughput divided by latency. Source: Kleinrock 1979, "Power and deterministic rules of thumb".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.config import SpeedConfig
from r2_serve.engines.batching import Batch
from r2_serve.lab.simulate.hardware import load_hardware

PROMPT, REPLY, NUM_CALLS = 300, 120, 400
"""Tokens of a call, and calls at each N."""


def measured(speed: SpeedConfig, num_at_once: int) -> tuple[float, float]:
    """Calls per second and mean latency in seconds of a closed loop of `num_at_once` calls."""
    batch, began, done_s = Batch(speed), {}, []
    for _ in range(num_at_once):
        began[batch.arrive(0.0, PROMPT, REPLY)] = 0.0
    now_s = 0.0
    while len(done_s) < NUM_CALLS:
        now_s = batch.next_event_s() or now_s
        for finished in batch.advance(now_s):
            done_s.append(finished.end_s - began.pop(finished.sequence))
            began[batch.arrive(finished.end_s, PROMPT, REPLY)] = finished.end_s
    return len(done_s) / now_s, sum(done_s) / len(done_s)


def main(hardware: Annotated[Path, typer.Argument(help="Hardware file (YAML).")]) -> None:
    """Print throughput, latency and power at each number of calls in progress, and the knee."""
    for name, model in load_hardware(hardware).models.items():
        if model.speed is None:
            continue
        found = {n: measured(model.speed, n) for n in (1, 2, 4, 6, 8, 10, 12, 16, 24, 32)}
        knee = max(found, key=lambda n: found[n][0] / found[n][1])
        for n, (per_s, latency_s) in found.items():
            mark = "  <- knee" if n == knee else ""
            typer.echo(f"{name:8} {n:3} calls: {per_s:6.2f}/s, {latency_s:6.2f} s{mark}")


if __name__ == "__main__":
    typer.run(main)
