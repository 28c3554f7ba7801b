"""Finds the highest rate at which `r2-serve load` sends on time, against an endpoint that does little.

    python -m benchmarks.load_rate --rates 50,100,200,400 --out runs/bench/load_rate.json

The endpoint is `benchmarks.gateway_upstream` in its own process on the same machine (20 ms, then 32 pieces of
a stream over 64 ms), so the two share the cores. Each rate is a Poisson workload that the shipped command
sends. The figure is the generator's own lateness: the time from the intended start of a request to its
sending. It says nothing about the router or the network.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
import yaml

from r2_serve.lab.load.summary import LATE_S, LoadSummary
from r2_serve.lab.runs import machine_line
from r2_serve.ops.local.cluster import free_port

START_S = 30.0


def main(
    rates: Annotated[str, typer.Option(help="Requests per second, comma-separated.")] = "50,100,200,400",
    duration_s: Annotated[float, typer.Option(min=1, help="Seconds for each rate.")] = 10.0,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Whole replies.")] = False,
    out: Annotated[Path, typer.Option(help="File of the figures (JSON).")] = Path(
        "runs/bench/load_rate.json"
    ),
) -> None:
    """Print a line for each rate, and write the figures."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_upstream", str(port)]
    upstream = subprocess.Popen(command)  # noqa: S603
    try:
        _wait_for(port)
        rows = [
            _measure(float(rate), duration_s, f"http://127.0.0.1:{port}/v1", no_stream=no_stream)
            for rate in rates.split(",")
        ]
    finally:
        upstream.terminate()
        upstream.wait()
    result = {
        "machine": machine_line(),
        "date": datetime.date.today().isoformat(),
        "is_streamed": not no_stream,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    typer.echo(f"written: {out}")


def _measure(rate_per_s: float, duration_s: float, url: str, *, no_stream: bool) -> dict[str, float]:
    shapes = [{"waves": [{"model": "worker", "words": 32}]}]
    workload = {
        "name": "rate",
        "duration_s": duration_s,
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
        "tasks": {"kind": "synthetic", "model": "worker", "shapes": shapes},
    }
    with tempfile.TemporaryDirectory() as folder:
        path, run = Path(folder) / "rate.yaml", Path(folder) / "run"
        path.write_text(yaml.safe_dump(workload))
        load = [sys.executable, "-m", "r2_serve.cli", "load", str(path), "--url", url, "--out", str(run)]
        load += ["--no-stream"] * no_stream
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        summary = LoadSummary.model_validate_json((run / "summary.json").read_bytes())
    late, latency = summary.lateness_s, summary.latency_s
    assert late is not None and latency is not None, "some requests were answered"
    row = {
        "rate_per_s": rate_per_s,
        "num_sent": summary.num_sent,
        "num_failed": summary.num_failed,
        "late_p50_ms": 1000 * late.p50,
        "late_p99_ms": 1000 * late.p99,
        "latency_p50_ms": 1000 * latency.p50,
        "latency_p99_ms": 1000 * latency.p99,
        "is_on_time": late.p99 <= LATE_S,
    }
    lateness = f"late p50 {row['late_p50_ms']:.1f} p99 {row['late_p99_ms']:.1f} ms"
    latencies = f"latency p50 {row['latency_p50_ms']:.0f} p99 {row['latency_p99_ms']:.0f} ms"
    counts = f"{row['num_sent']} sent, {row['num_failed']} failed"
    typer.echo(f"{rate_per_s:>6g}/s: {counts}, {lateness}, {latencies}")
    return row


def _wait_for(port: int) -> None:
    give_up_at = time.monotonic() + START_S
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=START_S)
        except httpx.HTTPError:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    typer.run(main)
