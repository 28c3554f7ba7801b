"""Metrics of several router replicas on one page."""

from __future__ import annotations

from decimal import Decimal

from prometheus_client.parser import text_string_to_metric_families

from r2_serve.cluster.metrics import SILENT, labelled, merged
from r2_serve.http.admission import Admission
from r2_serve.http.metrics import Metrics
from r2_serve.lab.load.monitor import queue_state
from r2_serve.lab.load.records import QueueState
from r2_serve.types import CallRecord, Trace, Usage
from tests.support.scraped import total


def replica_page(name: str, num_queries: int) -> bytes:
    """The page of a router replica that has answered so many queries for 0.1 USD each."""
    metrics = Metrics()
    metrics.watch(Admission(4, 4))
    call = CallRecord(
        stage="execute",
        model="m",
        outcome="ok",
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        cost_usd=Decimal("0.1"),
    )
    for _ in range(num_queries):
        metrics.observe(Trace(request_id="r", model="r2", query="q", calls=(call,)))
        metrics.count_request("/v1/chat/completions", "r2", 200, 0.02)
    return labelled(metrics.render(), name)


def test_merged_page_holds_the_samples_of_every_replica_with_its_name() -> None:
    page = merged([replica_page("a", 3), replica_page("b", 4)], num_silent=1).decode()
    assert total(page, "r2_cost_usd_total", model="m") == 0.7
    assert (total(page, "r2_cost_usd_total", replica="a"), total(page, "r2_cost_usd_total", replica="b")) == (
        0.3,
        0.4,
    )
    assert total(page, "r2_request_seconds_bucket", le="0.025", replica="b") == 4
    assert total(page, SILENT) == 1


def test_samples_of_a_family_stand_together_under_one_type_line() -> None:
    page = merged([replica_page("a", 1), replica_page("b", 1)], num_silent=0).decode()
    types = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 10
    current = ""
    for line in page.splitlines():
        if line.startswith("# TYPE"):
            current = line.split()[2].removesuffix("_total")
        elif not line.startswith("#"):
            assert line.startswith(current), line


def test_page_of_one_replica_has_its_samples_only() -> None:
    def samples(page: bytes) -> set[tuple[str, float]]:
        families = text_string_to_metric_families(page.decode())
        return {
            (sample.name, sample.value)
            for family in families
            for sample in family.samples
            if sample.name != SILENT
        }

    metrics = Metrics()
    metrics.count_request("/v1/chat/completions", "r2", 200, 0.02)
    plain = metrics.render()
    assert samples(merged([labelled(plain, "a")], num_silent=0)) == samples(plain)


def test_load_run_reads_the_queue_with_and_without_replicas() -> None:
    def page(num_running: int) -> bytes:
        metrics, admission = Metrics(), Admission(4, 4)
        admission.num_running = num_running
        metrics.watch(admission)
        return metrics.render()

    several = merged([labelled(page(2), "a"), labelled(page(1), "b")], num_silent=0).decode()
    assert queue_state(several) == QueueState(running=3, queued=0)
    assert queue_state(page(2).decode()) == QueueState(running=2, queued=0)
    assert queue_state("<html>no metrics here</html>") is None
