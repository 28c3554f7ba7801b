"""Compares stock and plan-ahead autoscaling at a thousand GPUs and ten thousand queries a second.

    STUDY=benchmarks/simulation/study.py
    python $STUDY run --scale 1                simulate every point that is not done
    python $STUDY run --scale 0.1              the same at a tenth of rate and GPUs
    python $STUDY run --scale 0.1 --cold 0.2   the same with replicas that start five times as fast
    python $STUDY plot --scale 1               docs/simulation-study.svg and a table

A point is a policy with its settings. Each policy is simulated at several targets, so that frontiers of cost
and attainment are compared, not single points. Points run one after another on one core, and each is written
to runs/study when it ends. The same command continues an interrupted run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from r2_serve.lab.jsonl import whole_lines
from r2_serve.lab.load.summary import RunInfo, summarize
from r2_serve.lab.simulate.hardware import Hardware, load_hardware
from r2_serve.lab.simulate.results import SimulatedRun
from r2_serve.lab.simulate.simulation import simulate
from r2_serve.lab.workload import Workload, load_workload
from r2_serve.serve_config import ServeConfig, load

HERE = Path(__file__).parent / "study"
RUNS, PICTURE = Path("runs/study"), Path("docs/simulation-study.svg")
COLD_START_S = {"m-small": 20.0, "m-large": 30.0}
TARGETS = {"m-small": 40.0, "m-large": 30.0}
"""Target of calls in progress for each replica, at factor 1."""

app = typer.Typer(no_args_is_help=True, help=__doc__)
Scale = Annotated[float, typer.Option(min=0.001, max=1, help="Share of the full rate, GPUs and replicas.")]
Cold = Annotated[
    float, typer.Option(min=0, max=10, help="Cold starts, as a multiple of those of the study (20 and 30 s).")
]


@dataclass(frozen=True)
class Point:
    """A policy with its settings."""

    policy: str
    target_factor: float
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return " ".join(
            [
                self.policy,
                f"target x{self.target_factor:g}",
                *(f"{key}={value}" for key, value in self.settings),
            ]
        )

    def autoscaling(self, app_name: str, cold: float) -> dict[str, Any]:
        """The keys that this point sets in the `autoscaling_config` of an application."""
        common = {"target_ongoing_requests": TARGETS[app_name] * self.target_factor}
        if self.policy == "plan-ahead":
            kwargs = {"cold_start_s": COLD_START_S[app_name] * cold, **dict(self.settings)}
            policy = {"policy_function": "r2_serve.scaling.serve_policy:PlanAhead", "policy_kwargs": kwargs}
            return {**common, "upscale_delay_s": 0, "downscale_delay_s": 10, "policy": policy}
        return {**common, **dict(self.settings)}


def points() -> Iterator[Point]:
    """All points: stock with its defaults, medium and quick settings, and plan-ahead, at several targets."""
    quick = (
        ("upscale_delay_s", 0),
        ("downscale_delay_s", 10),
        ("look_back_period_s", 6),
        ("metrics_interval_s", 2),
    )
    medium = (("upscale_delay_s", 5), ("downscale_delay_s", 30), ("look_back_period_s", 15))
    for factor in (0.6, 0.75, 1.0, 1.25):
        yield Point("stock, quick", factor, quick)
        yield Point("plan-ahead", factor)
    for factor in (0.6, 1.0):
        yield Point("stock, medium", factor, medium)
    yield Point("stock, as shipped", 0.6)
    yield Point("stock, as shipped", 1.0)


@app.command()
def run(
    scale: Scale = 1.0,
    cold: Cold = 1.0,
    only: Annotated[str, typer.Option(help="Only points whose name contains this text.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most points to simulate now.")] = 1000,
) -> None:
    """Simulate every point that is not done."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = rows_path(scale, cold)
    done = {row["name"] for row in rows(path)}
    left = [point for point in points() if point.name not in done and only in point.name]
    for number, point in enumerate(left[:limit], 1):
        typer.echo(f"{number}/{len(left)}: {point.name}")
        row = simulated(point, scale, cold)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        typer.echo(f"  {row['slo_attainment']:.1%} in time, {row['paid_usd']:.1f} USD, {row['wall_s']:.0f} s")


def simulated(point: Point, scale: float, cold: float) -> dict[str, Any]:
    workload, hardware = scaled_workload(scale), scaled_hardware(scale, cold)
    began_s = time.monotonic()

    def progress(simulated_s: float, num_came: int, num_ended: int) -> None:
        counts, wall_s = f"{num_came:,} came, {num_ended:,} ended", time.monotonic() - began_s
        typer.echo(f"\r  {simulated_s:.0f} s, {counts}, {wall_s:.0f} s", nl=False)

    result = simulate(scaled_config(point, scale, cold), workload, hardware, progress=progress)
    typer.echo("")
    info = RunInfo.of(workload, "simulated", seed=None, gpu_usd_per_hour=hardware.cluster.gpu_usd_per_hour)
    summary = summarize(info, result.queries.records(), result.timeline)
    assert summary.latency_s is not None
    return {
        "name": point.name,
        **asdict(point),
        "scale": scale,
        "cold": cold,
        "num_queries": summary.num_sent,
        "num_ok": summary.num_ok,
        "slo_attainment": summary.slo_attainment,
        "p50_s": summary.latency_s.p50,
        "p95_s": summary.latency_s.p95,
        "gpu_s": summary.gpu_s,
        "paid_gpu_s": result.facts.paid_gpu_s,
        "paid_usd": result.facts.paid_usd,
        "usd_per_1000_queries": 1000 * result.facts.paid_usd / summary.num_sent,
        "most_gpus": max(
            sum((d.running + d.starting) * d.gpus for d in s.deployments.values()) for s in result.timeline
        ),
        "replicas": {name: replicas(result, name) for name in ("m-small/Model", "m-large/Model")},
        "num_open": [sample.num_open for sample in result.timeline],
        "num_subtasks": result.facts.num_subtasks,
        "num_events": result.facts.num_events,
        "wall_s": result.facts.wall_s,
    }


def replicas(run: SimulatedRun, name: str) -> list[int]:
    """Running and starting replicas of a deployment in each second."""
    counts = [sample.deployments[name] for sample in run.timeline]
    return [count.running + count.starting for count in counts]


def scaled_config(point: Point, scale: float, cold: float) -> ServeConfig:
    raw = yaml.safe_load((HERE / "serve_config.yaml").read_text())
    for entry in raw["applications"]:
        if (speed := entry["args"].get("engine", {}).get("speed")) is not None:
            speed["start_s"] *= cold
        for deployment in entry["deployments"]:
            if "num_replicas" in deployment:
                deployment["num_replicas"] = max(1, round(deployment["num_replicas"] * scale))
            if "autoscaling_config" in deployment:
                given = deployment["autoscaling_config"]
                bounds = {
                    key: max(1, round(given[key] * scale))
                    for key in ("min_replicas", "initial_replicas", "max_replicas")
                }
                deployment["autoscaling_config"] = {
                    **given,
                    **bounds,
                    **point.autoscaling(entry["name"], cold),
                }
    path = RUNS / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return load(path)


def scaled_workload(scale: float) -> Workload:
    workload = load_workload(HERE / "workload.yaml")
    arrivals: Mapping[str, Any] = workload.arrivals.model_dump()
    rates = {key: value * scale for key, value in arrivals.items() if key.endswith("rate_per_s")}
    return Workload.model_validate({**workload.model_dump(), "arrivals": {**arrivals, **rates}})


def scaled_hardware(scale: float, cold: float) -> Hardware:
    hardware = load_hardware(HERE / "hardware.yaml")
    cluster, overheads = hardware.cluster, hardware.overheads
    assert cluster.gpus is not None
    return hardware.model_copy(
        update={
            "cluster": cluster.model_copy(update={"gpus": cluster.gpus * scale}),
            "overheads": overheads.model_copy(update={"replica_start_s": overheads.replica_start_s * cold}),
        }
    )


def rows_path(scale: float, cold: float) -> Path:
    return RUNS / f"scale-{scale:g}-cold-{cold:g}.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, whole_lines(path)))


@app.command()
def plot(scale: Scale = 1.0, cold: Cold = 1.0, out: Path = PICTURE) -> None:
    """Draw the frontiers and the replicas over time of one point each, and print a table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = rows(rows_path(scale, cold))
    figure, (frontier, timeline) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for policy in dict.fromkeys(row["policy"] for row in found):
        chosen = [row for row in found if row["policy"] == policy]
        chosen.sort(key=lambda row: row["target_factor"])
        xs = [row["usd_per_1000_queries"] for row in chosen]
        ys = [100 * row["slo_attainment"] for row in chosen]
        frontier.plot(xs, ys, marker="o", label=policy)
        for x, y, row in zip(xs, ys, chosen):
            text, offset = f"x{row['target_factor']:g}", (5, -9)
            frontier.annotate(text, (x, y), textcoords="offset points", xytext=offset, fontsize=7)
        middle = next((row for row in chosen if row["target_factor"] == 1.0), chosen[0])["replicas"]
        timeline.plot([a + b for a, b in zip(middle["m-small/Model"], middle["m-large/Model"])], label=policy)
    frontier.set(xlabel="USD of GPUs per 1,000 queries", ylabel="% of queries within the objective")
    frontier.set(title="cost against attainment")
    timeline.set(xlabel="seconds", ylabel="GPUs (running and starting)", title="GPUs asked for, at target x1")
    frontier.legend(fontsize=8)
    timeline.legend(fontsize=7, loc="lower center")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    typer.echo(f"written: {out}\n")
    typer.echo("| policy | target | in time | p50 s | p95 s | USD per 1,000 | most GPUs | wall s |")
    typer.echo("|---|---|---|---|---|---|---|---|")
    for row in found:
        latencies = f"{row['p50_s']:.1f} | {row['p95_s']:.1f}"
        costs = f"{row['usd_per_1000_queries']:.4f} | {row['most_gpus']:.0f} | {row['wall_s']:.0f}"
        in_time = f"{row['slo_attainment']:.1%}"
        typer.echo(f"| {row['policy']} | x{row['target_factor']:g} | {in_time} | {latencies} | {costs} |")


if __name__ == "__main__":
    app()
