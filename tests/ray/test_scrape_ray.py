"""Two router replicas behind one proxy, scraped by hand and, if it is installed, by Prometheus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.cluster.metrics import SILENT
from r2_serve.cluster.siblings import LOST
from r2_serve.ops.deploy_files.dashboard import WINDOW, dashboard
from r2_serve.ops.deploy_files.monitoring import (
    alert_rules,
    monitoring_files,
    prometheus_config,
    write_files,
)
from r2_serve.ops.local.cluster import free_port, local_cluster
from r2_serve.serve_config import ServeConfig, load
from tests.support.deployed_cluster import until
from tests.support.scraped import replicas_of, total
from tests.support.scripted_pool import scripted_config

pytestmark = pytest.mark.ray

CHAT = {"route": "/v1/chat/completions"}
SLOW = "slow"


class TwoRouters:
    def __init__(self, config: ServeConfig, root: str) -> None:
        self.config, self.root, self.num_asked = config, root, 0

    def ask(self, times: int) -> None:
        """Each request has a connection of its own, so that either replica may get it."""
        for _ in range(times):
            self.ask_one()

    def ask_one(self) -> str:
        """The id of the request."""
        body = {"model": "r2", "messages": [{"role": "user", "content": "hi"}]}
        reply = httpx.post(f"{self.root}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200
        self.num_asked += 1
        return reply.headers["x-request-id"]

    def ask_slow(self) -> None:
        """Asks what takes longer than the test."""
        body = {"model": SLOW, "messages": [{"role": "user", "content": "hi"}]}
        httpx.post(f"{self.root}/v1/chat/completions", json=body, timeout=60)

    def at_work(self) -> list[str]:
        """The replicas that have requests at work."""
        page = self.page()
        running = {name: total(page, "r2_requests_running", replica=name) for name in replicas_of(page)}
        return [name for name, count in running.items() if count]

    def page(self) -> str:
        return httpx.get(f"{self.root}/metrics", timeout=30).text


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRouters]:
    raw = scripted_config(replies={SLOW: ["late"]}, delay_s={SLOW: 50.0})
    raw["applications"][-1]["deployments"][0]["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 2}
    path: Path = tmp_path_factory.mktemp("routers") / "serve_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    config, port = load(path), free_port()
    with local_cluster(config, port=port, num_cpus=4):
        yield TwoRouters(config, f"http://127.0.0.1:{port}")


def test_any_scrape_shows_the_counts_of_every_replica(routers: TwoRouters) -> None:
    until(lambda: len(replicas_of(routers.page())) == 2)
    routers.ask(20)
    for _ in range(6):  # whichever replica the proxy picks
        page = routers.page()
        assert total(page, "r2_requests_total", **CHAT) == routers.num_asked
        assert total(page, SILENT) == 0
    by_replica = [total(page, "r2_requests_total", replica=name, **CHAT) for name in replicas_of(page)]
    assert len(by_replica) == 2 and min(by_replica) > 0, "or the sum proves nothing"


def test_whoever_watches_sees_the_queries_of_both_replicas(routers: TwoRouters) -> None:
    """Serve sends the second watcher to the replica that has none, so that each sees queries of the other."""
    until(lambda: len(replicas_of(routers.page())) == 2)
    path = f"{routers.root}/v1/r2/events?recent=100"
    with httpx.stream("GET", path, timeout=60) as one, httpx.stream("GET", path, timeout=60) as other:
        streams = [watched(one), watched(other)]
        for events in streams:
            past = takewhile(lambda event: event["kind"] != "live", events)
            assert sum(event["kind"] == "answered" for event in past) == routers.num_asked
        asked = sorted(routers.ask_one() for _ in range(12))
        for events in streams:
            answered = (event["request_id"] for event in events if event["kind"] == "answered")
            assert sorted(islice(answered, 12)) == asked, "each once"


def watched(stream: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of an open stream."""
    return (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))


@pytest.mark.needs("prometheus")
def test_prometheus_gets_data_for_every_panel(routers: TwoRouters, tmp_path: Path) -> None:
    import ray

    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    (tmp_path / "nodes.json").write_text(json.dumps([{"targets": nodes}]))
    scraping = prometheus_config(routers.config, routers.root[7:], None, str(tmp_path / "nodes.json"))
    write_files(tmp_path, monitoring_files(tmp_path, scraping, alert_rules(routers.config)))
    with prometheus(tmp_path) as query:

        def empty() -> set[str]:
            routers.ask(2)
            exprs = {
                panel["title"]: target["expr"].replace(WINDOW, "20s")
                for panel in dashboard()["panels"]
                for target in panel.get("targets", ())
                if "ray_vllm_" not in target["expr"]  # read in test_vllm_ray.py
            }
            return {title for title, expr in exprs.items() if not query(expr)}

        no_keys_faults_or_gpus = {
            "Spend of client keys",
            "Saved for client keys",
            "Answers of gates",
            "Mean score of ratings",
            "Queries in trials",
            "Spend of trials per hour",
            "Plans and allocations replaced",
            "GPU utilization",
            "GPU memory",
            "Nodes",
        }
        until(lambda: empty() <= no_keys_faults_or_gpus)
        assert {found["metric"]["job"]: found["value"][1] for found in query("up")} == {"r2": "1", "ray": "1"}


def test_dead_replica_fails_no_scrape_and_its_samples_and_queries_end(routers: TwoRouters) -> None:
    """One watcher is at each replica, so the other one's hears that the query at work is lost."""
    from ray._private.state import actors

    until(lambda: len(replicas_of(routers.page())) == 2)
    before = replicas_of(routers.page())
    path = f"{routers.root}/v1/r2/events?recent=1"
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        streams = [stack.enter_context(httpx.stream("GET", path, timeout=60)) for _ in range(2)]
        watchers = [Watcher(stream) for stream in streams]
        ends = [pool.submit(watcher.end) for watcher in watchers]
        assert all(watcher.is_live.wait(60) for watcher in watchers)
        pool.submit(routers.ask_slow)
        assert all(watcher.has_begun.wait(60) for watcher in watchers), "both replicas know of the query"
        (name,) = routers.at_work()
        victim = next(actor for actor in actors().values() if actor["Name"].endswith(name))
        os.kill(victim["Pid"], signal.SIGKILL)
        assert {end.result(60) for end in ends} == {LOST, "the stream has ended"}
    until(lambda: len(replicas_of(routers.page())) == 2 and replicas_of(routers.page()) != before)
    assert total(routers.page(), SILENT) == 0


class Watcher:
    """It reads a stream of events until a query fails."""

    def __init__(self, stream: httpx.Response) -> None:
        self._events = watched(stream)
        self.is_live = threading.Event()
        """All queries from before were told."""
        self.has_begun = threading.Event()
        """A query has started since."""

    def end(self) -> str:
        """Why the query failed."""
        try:
            for event in self._events:
                if event["kind"] == "live":
                    self.is_live.set()
                elif event["kind"] == "started" and self.is_live.is_set():
                    self.has_begun.set()
                elif event["kind"] == "failed":
                    return str(event["error"])
        except httpx.TransportError:
            pass
        return "the stream has ended"


@contextmanager
def prometheus(folder: Path) -> Iterator[Any]:
    """A Prometheus server on the files in `folder` that scrapes each second; gives a query function."""
    config = (folder / "prometheus.yml").read_text().replace("15s", "1s")
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/db",
        "--log.level=error",
    ]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"])

    def query(expr: str) -> list[dict[str, Any]]:
        reply = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expr}, timeout=30).json()
        assert reply["status"] == "success", reply
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result

    try:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).status_code == 200)
        yield query
    finally:
        process.terminate()
        process.wait(timeout=30)
