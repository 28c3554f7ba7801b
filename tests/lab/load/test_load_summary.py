"""Figures of a load run: percentiles, goodput and replica-seconds against known values, and the page."""

from __future__ import annotations

import random
from decimal import Decimal
from html.parser import HTMLParser

import numpy
import pytest

from r2_serve.lab.load.cells import figure_rows, verdict
from r2_serve.lab.load.page import page
from r2_serve.lab.load.records import LoadRecord, QueueState, ReplicaCount, TimelineSample
from r2_serve.lab.load.replicas import cluster_counts
from r2_serve.lab.load.summary import Distribution, RunInfo, deployment_use, node_seconds, summarize
from r2_serve.lab.workload import Slo


def info(**fields: object) -> RunInfo:
    run = {
        "workload": "bursts",
        "seed": 3,
        "url": "http://127.0.0.1:8000/v1",
        "model": "r2",
        "slo": Slo(latency_s=2.0, ttft_s=1.0),
        "duration_s": 10.0,
        "started": "2026-11-24T16:00:00+00:00",
        "code_version": "0.1.0+abc",
        "machine": "2 CPUs",
        "max_open": 2000,
    }
    return RunInfo.model_validate({**run, **fields})


def record(
    index: int, start_s: float, latency_s: float, ttft_s: float | None = 0.5, **fields: object
) -> LoadRecord:
    request = {
        "index": index,
        "intended_start_s": start_s,
        "sent_s": start_s + 0.001,
        "end_s": start_s + latency_s,
        "first_token_s": None if ttft_s is None else start_s + ttft_s,
        "outcome": "ok",
        "status": 200,
        "cost_usd": Decimal("0.001"),
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "num_subtasks": 2,
    }
    return LoadRecord.model_validate({**request, **fields})


def sample(
    t_s: float, deployments: dict[str, tuple[int, int]] | None = None, **fields: object
) -> TimelineSample:
    counts = {
        name: ReplicaCount(running=r, starting=s, target=r + s, gpus=0.5)
        for name, (r, s) in (deployments or {}).items()
    }
    given = {
        "num_sent": 1,
        "num_done": 0,
        "num_failed": 0,
        "num_open": 1,
        "spent_usd": Decimal(0),
        "deployments": counts,
        **fields,
    }
    return TimelineSample.model_validate({"t_s": t_s, **given})


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1001])
def test_percentiles_equal_those_of_numpy(size: int) -> None:
    draw = random.Random(size)
    values = [draw.expovariate(1.0) for _ in range(size)]
    found = Distribution.of(values)
    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99) == pytest.approx(
        tuple(numpy.percentile(values, [50, 90, 95, 99]))
    )
    assert (found.mean, found.max) == pytest.approx((numpy.mean(values), max(values)))


def test_goodput_counts_requests_within_every_limit_and_failures_lower_it() -> None:
    records = [
        record(0, 0.0, 1.0),
        record(1, 1.0, 2.0),  # at the limit
        record(2, 2.0, 2.001),  # too late
        record(3, 3.0, 1.9, ttft_s=1.2),  # first token too late
        record(4, 4.0, 0.1, outcome="failed", status=429, error="429 overloaded: full", cost_usd=None),
        record(5, 5.0, 3.0, outcome="unfinished"),  # counts nowhere
    ]
    summary = summarize(info(), records, [])
    assert (
        summary.num_sent,
        summary.num_ok,
        summary.num_failed,
        summary.num_unfinished,
        summary.num_good,
    ) == (6, 4, 1, 1, 2)
    assert summary.slo_attainment == pytest.approx(2 / 5)
    assert summary.wall_s == pytest.approx(8.0)
    assert summary.goodput_per_s == pytest.approx(2 / 8)
    assert summary.errors == {"429 overloaded": 1}
    assert summary.cost_usd == Decimal("0.005") and summary.num_cost_unknown == 1
    assert summary.latency_s is not None and summary.latency_s.max == pytest.approx(
        2.001
    )  # of answered requests alone


def test_without_an_objective_every_answer_but_a_wrong_one_is_good() -> None:
    records = [
        record(0, 0.0, 99.0, ttft_s=None),
        record(1, 0.0, 1.0, correct=False),
        record(2, 0.0, 1.0, correct=True),
    ]
    summary = summarize(info(slo=Slo()), records, [])
    assert (summary.num_good, summary.num_graded, summary.num_correct) == (2, 2, 1)


def test_latency_counts_from_the_intended_start() -> None:
    late = record(0, 1.0, 5.0, sent_s=5.5)
    assert (late.latency_s, late.lateness_s) == (5.0, 4.5)
    summary = summarize(info(), [late], [])
    assert summary.latency_s is not None and summary.latency_s.p50 == 5.0


def test_late_generator_is_a_warning_with_its_reason() -> None:
    late = [record(i, float(i), 1.0, sent_s=i + (0.2 if i % 10 == 0 else 0.0)) for i in range(100)]
    (warning,) = summarize(info(), late, []).warnings
    assert "200 ms" in warning and "too busy" in warning
    (warning,) = summarize(info(blocked_s=12), late, []).warnings
    assert "12.0 s as all 2000 connections" in warning
    assert summarize(info(), [record(i, float(i), 1.0) for i in range(100)], []).warnings == ()


def test_replica_seconds_are_the_integral_of_running_and_starting_replicas() -> None:
    timeline = [
        sample(0, {"a": (0, 0), "b": (1, 0)}),
        sample(1, {"a": (0, 2), "b": (1, 0)}),
        sample(3, {"a": (2, 0), "b": (1, 0)}),
        sample(4),
    ]
    use = deployment_use([*timeline, sample(5, {"a": (0, 0), "b": (1, 0)})])
    assert use["a"].replica_s == pytest.approx(0.5 * 2 + 2 * 2 + 2 * 1.0)
    assert use["a"].starting_s == pytest.approx(0.5 * 2 + 2 * 1.0)
    assert use["a"].gpu_s == pytest.approx(use["a"].replica_s * 0.5)
    assert (use["a"].max_replicas, use["b"].replica_s) == (
        2,
        5.0,
    )  # a sample without counts is bridged


def test_gpu_cost_is_gpu_seconds_times_the_price() -> None:
    summary = summarize(
        info(gpu_usd_per_hour=7.2),
        [record(0, 0.0, 1.0)],
        [sample(0, {"a": (2, 0)}), sample(100, {"a": (2, 0)})],
    )
    assert (summary.replica_s, summary.gpu_s) == (200.0, 100.0)
    assert summary.gpu_usd == pytest.approx(0.2)


def serve_details(*replicas: tuple[str, str | None], gpus: float = 1, **app: object) -> dict[str, object]:
    """Serve's details of one model with replicas of these states and nodes."""
    deployment = {
        "replicas": [{"state": state, "node_id": node} for state, node in replicas],
        "target_num_replicas": 4,
        "required_resources": {"CPU": 1, "GPU": gpus},
    }
    return {"m-small": {"deployments": {"Model": deployment}, **app}}


def test_replicas_in_serves_details_are_counted_by_state_and_their_gpus_by_node() -> None:
    states = (("RUNNING", "a"), ("RUNNING", "a"), ("STARTING", None), ("STOPPING", "b"), ("UPDATING", "a"))
    counts = cluster_counts(serve_details(*states, gpus=0.5), ["a", "b", "c"])
    assert counts.deployments == {
        "m-small/Model": ReplicaCount(running=3, starting=1, stopping=1, target=4, gpus=0.5)
    }
    assert counts.nodes == {"a": 1.5, "b": 0.5, "c": 0.0}


def test_gpus_of_a_placement_group_are_those_of_all_its_bundles() -> None:
    """Serve's details name the actor's own resources alone: none, where workers have the GPUs."""
    entry = {"name": "Model", "placement_group_bundles": [{"CPU": 1}, *[{"GPU": 1}] * 4]}
    details = serve_details(("RUNNING", "a"), gpus=0, deployed_app_config={"deployments": [entry]})
    counts = cluster_counts(details, ["a"])
    assert counts.deployments["m-small/Model"].gpus == 4.0 and counts.nodes == {"a": 4.0}


def test_replica_that_waits_for_a_node_holds_no_gpu() -> None:
    waits = ReplicaCount(running=1, starting=1, waiting=1, stopping=1, target=2, gpus=2.0)
    samples = [sample(t).model_copy(update={"deployments": {"a": waits}}) for t in (0.0, 10.0)]
    use = deployment_use(samples)["a"]
    assert (use.replica_s, use.starting_s, use.gpu_s) == (20.0, 10.0, 40.0)


def test_node_seconds_count_nodes_that_are_up_idle_or_not() -> None:
    up = [{"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.5}, {"b": 0.0}]
    timeline = [sample(10.0 * i, {"m": (1, 0)}, nodes=nodes) for i, nodes in enumerate(up)]
    assert node_seconds(timeline) == 10 * (1.5 + 2 + 1.5)
    assert node_seconds([sample(0, {"m": (1, 0)}), sample(9, {"m": (1, 0)})]) is None


def test_node_that_an_autoscaler_would_take_away_counts_until_its_idle_timeout() -> None:
    """One of two nodes works from 10 to 20 s and from 80 s on; the other never does."""
    used = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    nodes = [{"a": gpus, "b": 0.0} for gpus in used]
    timeline = [sample(10.0 * i, {"m": (1, 0)}, nodes=own) for i, own in enumerate(nodes)]
    assert node_seconds(timeline) == 200.0
    assert node_seconds(timeline, idle_timeout_s=25.0) == (10 + 25) + (10 + 10)
    summary = summarize(info(node_idle_timeout_s=25.0), [record(0, 0.0, 1.0)], timeline)
    assert summary.node_s == 55.0
    assert dict(figure_rows(summary))["node-seconds"] == "55, of which a node is idle for 25 s at most"


class Outside(HTMLParser):
    """Collects everything that a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#")
        ]
        self.found += [tag] * (tag in ("script", "link", "iframe", "object"))
        if tag == "svg":
            self.images.append(str(given.get("aria-label")))


def test_page_is_self_contained_and_holds_every_figure() -> None:
    draw = random.Random(0)
    records = [record(i, i / 10, 0.4 + draw.expovariate(1.0), ttft_s=0.3) for i in range(100)]
    records.append(
        record(
            100,
            9.9,
            0.2,
            outcome="failed",
            status=502,
            error="502 upstream_error: <script>alert(1)</script>",
            cost_usd=None,
        )
    )
    timeline = [
        sample(t, {"m-small/Model": (t % 3, 1)}, queue=QueueState(running=1, queued=t)) for t in range(12)
    ]
    summary = summarize(info(gpu_usd_per_hour=2.0, blocked_s=3), records, timeline)
    text = page(summary, records, timeline)
    outside = Outside()
    outside.feed(text)
    assert outside.found == []
    assert outside.images == [
        "Arrivals, queue, replicas, latency and spend over the run",
        "Share of requests answered within a time",
    ]
    for _, figure in figure_rows(summary):
        assert figure in text
    assert verdict(summary) in text
    assert "m-small/Model" in text and "502 upstream_error" in text and "<script>" not in text


def test_run_without_an_answer_still_makes_a_page() -> None:
    failed = record(
        0, 0.0, 0.1, ttft_s=None, outcome="failed", status=None, error="ConnectError: refused", cost_usd=None
    )
    summary = summarize(info(), [failed], [sample(0)])
    assert summary.latency_s is None and summary.slo_attainment == 0.0
    assert "ConnectError" in page(summary, [failed], [sample(0)])
