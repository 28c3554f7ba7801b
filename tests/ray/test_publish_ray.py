"""`r2-serve publish` and `rollback` on a real cluster, under requests: nothing fails, nothing restarts,
answers change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from r2_serve.adapters import write_adapter
from r2_serve.prompts import get_codec
from r2_serve.traces import read_traces
from tests import EMBEDDED
from tests.support.deployed_cluster import DeployedCluster, replica_pids, running_cluster, until
from tests.support.scripted_pool import PLANNER, SMALL, scripted_config
from tests.support.serve_apps import FREE, model_app, served_card
from tests.support.small_adapters import adapter, manifest

pytestmark = pytest.mark.ray

SHIPPED = EMBEDDED / "words-decomposer"
REAL = "words-decomposer"
NUM_CLIENTS, MOST_REQUESTS = 4, 4000
PROBLEM = "Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?"


def config(traces: Path) -> dict[str, Any]:
    """The scripted pool, whose planner says which adapter planned, and a real tiny decomposer with two
    replicas."""
    plan = {"subtasks": [{"id": 1, "text": "by {adapter}", "depends_on": []}]}
    config = scripted_config(
        replies={PLANNER: [json.dumps(plan)]},
        delay_s={PLANNER: 0.02},
        model_options={"num_replicas": 1},
        server={"trace_dir": str(traces)},
    )
    router = config["applications"][-1]
    engine = {"kind": "transformers", "path": f"embedded:{REAL}"}
    app = model_app(REAL, engine, num_replicas=2, max_ongoing_requests=64, **FREE)
    config["applications"].insert(0, app)
    router["args"]["models"].append(served_card(REAL, codec="compact"))
    virtual_models = router["deployments"][0]["user_config"]["virtual_models"]
    virtual_models["words"] = {
        "pool": [SMALL],
        "decomposer": {"model": REAL, "num_samples": 1},
        "allocator": {"model": "picker"},
        "plan": "always",
    }
    return config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedCluster]:
    folder = tmp_path_factory.mktemp("publish")
    with running_cluster(folder) as cluster:
        cluster.deploy(config(folder / "traces"))
        until(lambda: cluster.get("/health/ready").status_code == 200)
        until(lambda: all(status == "RUNNING" for status in statuses(cluster).values()))
        yield cluster


def statuses(cluster: DeployedCluster) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    found = httpx.get(f"{cluster.dashboard}/api/serve/applications/", headers=headers, timeout=10).json()[
        "applications"
    ]
    return {name: details["status"] for name, details in found.items()}


def command(cluster: DeployedCluster, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--config", str(cluster.path), "--dashboard", cluster.dashboard]
    line = [sys.executable, "-m", "r2_serve.cli", *words, *options]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=180, env={**os.environ, **environment}
    )


@dataclass
class Traffic:
    """What requests, asked one after another by each of several clients, came to: (asked at, status,
    adapter)."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)

    def between(self, start: float, end: float) -> list[str]:
        return [adapter for asked, _, adapter in self.answers if start <= asked < end]

    def wait_for_more(self, count: int = 20) -> None:
        goal = len(self.answers) + count
        until(lambda: len(self.answers) >= goal)


def planner_of(reply: httpx.Response) -> str:
    """The adapter whose plan was used, or why none was."""
    if reply.status_code != 200:
        return f"status {reply.status_code}"
    trace = reply.json()["r2"]["trace"]
    text: str = trace["plan"]["subtasks"][0]["text"]
    return trace["plan_fallback"] or text.removeprefix("by ")


@contextmanager
def traffic(cluster: DeployedCluster) -> Iterator[Traffic]:
    seen, stop = Traffic(), threading.Event()

    def client() -> None:
        for number in range(MOST_REQUESTS // NUM_CLIENTS):
            if stop.is_set():
                return
            asked = time.monotonic()
            reply = cluster.ask("r2", f"query {number}")
            seen.answers.append((asked, reply.status_code, planner_of(reply)))

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(NUM_CLIENTS)]
        try:
            seen.wait_for_more()
            yield seen
        finally:
            stop.set()
    for done in clients:
        done.result()


def test_publishing_and_rolling_back_fail_no_request(cluster: DeployedCluster, tmp_path: Path) -> None:
    first, second = adapter(tmp_path, "dec-0001"), adapter(tmp_path, "dec-0002")
    pids = replica_pids()
    done_at = [0.0]
    with traffic(cluster) as seen:
        for words in (
            ("publish", str(first)),
            ("publish", str(second)),
            ("rollback", "--module", "decomposer"),
            ("rollback", "--module", "decomposer", "--to", "base"),
        ):
            done = command(cluster, *words)
            assert done.returncode == 0, done.stdout + done.stderr
            print(done.stdout)
            done_at.append(time.monotonic())
            seen.wait_for_more()
    assert {status for _, status, _ in seen.answers} == {200}
    used = ["base", "dec-0001", "dec-0002", "dec-0001", "base"]
    for i in range(1, len(used)):
        during = set(seen.between(done_at[i - 1], done_at[i]))
        assert during <= {used[i - 1], used[i]} and used[i - 1] in during
    assert set(seen.between(done_at[-1], time.monotonic())) == {"base"}
    assert replica_pids() == pids
    loaded = yaml.safe_load(cluster.path.read_text())["applications"]
    (planner,) = (app for app in loaded if app["name"] == f"m-{PLANNER}")
    assert list(planner["deployments"][0]["user_config"]["adapters"]) == ["dec-0001", "dec-0002"]
    assert cluster.path.read_text().startswith("# written by a test\n")


def arms_of(cluster: DeployedCluster, candidate: str) -> Counter[str]:
    """The queries of a trial by arm, as the traces of all routers tell them."""
    config = yaml.safe_load(cluster.path.read_text())["applications"][-1]
    notes = [trace.rollout for trace in read_traces(Path(config["args"]["server"]["trace_dir"]))]
    return Counter(note.arm for note in notes if note and note.candidate == candidate)


def test_shadow_canary_promotion_and_rollback_fail_no_request(
    cluster: DeployedCluster, tmp_path: Path
) -> None:
    candidate, pids = str(adapter(tmp_path, "dec-0101")), replica_pids()
    lenient = [word for name in ("seconds=20", "cost=5", "failures=0.05") for word in ("--margin", name)]
    with traffic(cluster) as seen:
        tried = command(cluster, "publish", candidate, "--shadow", "1.0", "--budget-usd", "5", *lenient)
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert "tries dec-0101 (shadow 100 %, canary 0 %)" in tried.stdout
        until(lambda: arms_of(cluster, "dec-0101")["shadow"] >= 30)
        assert "dec-0101" not in {name for _, _, name in seen.answers}
        early = command(cluster, "compare")
        assert early.returncode == 3, early.stdout + early.stderr
        done = command(cluster, "publish", candidate, "--shadow", "1.0", "--canary", "0.5")
        assert done.returncode == 0, done.stdout + done.stderr
        until(lambda: arms_of(cluster, "dec-0101")["shadow"] >= 400)
        acted = command(cluster, "compare", "--act")
        assert acted.returncode == 0, acted.stdout + acted.stderr
        print(acted.stdout)
        promoted_at = time.monotonic()
        seen.wait_for_more()
        back = command(cluster, "rollback", "--module", "decomposer", "--to", "base")
        assert back.returncode == 0, back.stdout + back.stderr
        back_at = time.monotonic()
        seen.wait_for_more()
    assert {status for _, status, _ in seen.answers} == {200}
    assert "dec-0101" in seen.between(promoted_at, back_at)
    assert set(seen.between(back_at, time.monotonic())) == {"base"}
    assert replica_pids() == pids
    assert "rollouts" not in cluster.path.read_text()


def real_adapter(folder: Path, name: str, *, weights: bytes | None = None) -> Path:
    """The embedded decomposer as a whole checkpoint to be called in its own place; `weights` in place of its
    own."""
    source = folder / f"{name}-trained"
    shutil.copytree(SHIPPED, source)
    if weights is not None:
        (source / "model.safetensors").write_bytes(weights)
    return write_adapter(source, folder, manifest(name, kind="full", base=REAL, codec="compact"))


def test_published_checkpoint_is_loaded_on_every_replica_and_makes_plans(
    cluster: DeployedCluster, tmp_path: Path
) -> None:
    before, pids = cluster.ask("words", PROBLEM).json()["r2"]["trace"], replica_pids()
    done = command(cluster, "publish", str(real_adapter(tmp_path, "words-0001")))
    assert done.returncode == 0, done.stdout + done.stderr
    after = cluster.ask("words", PROBLEM).json()["r2"]["trace"]
    assert before["plan_fallback"] is after["plan_fallback"] is None
    assert after["plan"] == before["plan"]
    assert replica_pids() == pids


def test_adapter_that_a_replica_cannot_load_changes_nothing(cluster: DeployedCluster, tmp_path: Path) -> None:
    text, pids = cluster.path.read_text(), replica_pids()
    with traffic(cluster) as seen:
        done = command(
            cluster, "publish", str(real_adapter(tmp_path, "words-broken", weights=b"not safetensors"))
        )
        assert done.returncode == 1
        assert "2 of 2 replicas of 'm-words-decomposer' cannot load it: cannot load the model" in done.stderr
        assert "file and routing are as before" in done.stderr
        seen.wait_for_more()
    assert {status for _, status, _ in seen.answers} == {200}
    assert cluster.path.read_text() == text
    until(lambda: set(statuses(cluster)) == {app["name"] for app in yaml.safe_load(text)["applications"]})
    assert replica_pids() == pids
    assert cluster.ask("words", PROBLEM).json()["r2"]["trace"]["plan_fallback"] is None


def test_other_codec_version_is_refused_before_any_change(cluster: DeployedCluster, tmp_path: Path) -> None:
    text = cluster.path.read_text()
    version = get_codec("instruct").version
    outdated = adapter(tmp_path, "dec-old", codec_version=version + 1)
    done = command(cluster, "publish", str(outdated))
    assert done.returncode == 1
    assert f"version {version + 1} of codec 'instruct'; this software has version {version}" in done.stderr
    assert cluster.path.read_text() == text


def test_user_config_with_a_broken_adapter_stops_no_replica(cluster: DeployedCluster, tmp_path: Path) -> None:
    """The file is changed by hand, without `publish`: Serve stops replicas whose `reconfigure` raises, so
    ours keep what they have."""
    text, pids = cluster.path.read_text(), replica_pids()
    wrong = yaml.safe_load(text)
    (planner,) = (app for app in wrong["applications"] if app["name"] == f"m-{PLANNER}")
    planner["deployments"][0].setdefault("user_config", {}).setdefault("adapters", {})["gone"] = str(
        tmp_path / "gone"
    )
    cluster.deploy(wrong)
    until(lambda: all(status == "RUNNING" for status in statuses(cluster).values()))
    assert cluster.ask("r2").status_code == 200
    assert replica_pids() == pids
    cluster.deploy(yaml.safe_load(text))
    until(lambda: all(status == "RUNNING" for status in statuses(cluster).values()))
    cluster.path.write_text(text)


def test_wrong_token_is_reported(cluster: DeployedCluster, tmp_path: Path) -> None:
    ready = str(adapter(tmp_path, "dec-0009"))
    refused = command(cluster, "publish", ready, RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode == 1 and "refuses the token" in refused.stderr
