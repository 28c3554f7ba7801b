"""`r2-serve publish` of a fitted gate on a real cluster: every router reads it, and no replica restarts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r2_serve.traces import read_traces
from tests.ops.test_publishing_gates import fitted
from tests.support.deployed_cluster import DeployedCluster, replica_pids, running_cluster, until
from tests.support.scripted_pool import LARGE, PICKER, PLANNER, SMALL, scripted_config

pytestmark = pytest.mark.ray
LOOSE = ("accuracy=0.5", "failures=0.5", "fallbacks=0.5", "cost=1", "seconds=50")
LENIENT = [word for margin in LOOSE for word in ("--margin", margin)]
"""Margins that a few dozen queries can prove."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedCluster]:
    folder = tmp_path_factory.mktemp("gates")
    gated = {
        "pool": [SMALL, LARGE],
        "decomposer": {"model": PLANNER},
        "allocator": {"model": PICKER},
        "gates": {"g": {"file": str(fitted(folder / "one.json", SMALL))}},
        "policy": "one:g",
    }
    config = scripted_config(
        more_virtual={"gated": gated},
        replies={LARGE: ["half"]},
        server={"trace_dir": str(folder / "traces")},
    )
    router = config["applications"][-1]["deployments"][0]
    router["num_replicas"] = 2
    with running_cluster(folder) as cluster:
        cluster.deploy(config)
        until(lambda: cluster.get("/health/ready").status_code == 200)
        until(lambda: sum("Router" in name for name in replica_pids()) == 2)
        yield cluster


def command(cluster: DeployedCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "r2-serve")
    asked = [program, *arguments, "--config", str(cluster.path), "--dashboard", cluster.dashboard]
    return subprocess.run(asked, capture_output=True, text=True, timeout=180, check=False)


def answerers(cluster: DeployedCluster, first: int = 0) -> set[str]:
    """The models that answered some queries, spread over both router replicas."""
    return {cluster.ask("gated", f"question {first + i}").headers["x-r2-models"] for i in range(12)}


def num_shadows(cluster: DeployedCluster) -> int:
    notes = (trace.rollout for trace in read_traces(cluster.path.parent / "traces"))
    return sum(note is not None and note.arm == "shadow" for note in notes)


def test_gate_is_published_tried_promoted_and_rolled_back_on_every_replica(
    cluster: DeployedCluster, tmp_path: Path
) -> None:
    assert answerers(cluster) == {SMALL}
    before = replica_pids()
    done = command(cluster, "publish", str(fitted(tmp_path / "two.json", LARGE)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read by every replica of r2" in done.stdout
    assert answerers(cluster) == {LARGE}
    done = command(cluster, "rollback", "--gate", "g")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answerers(cluster) == {SMALL}
    tried = str(fitted(tmp_path / "three.json", LARGE))
    done = command(cluster, "publish", tried, "--canary", "0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on trial: three" in done.stdout
    assert answerers(cluster) == {SMALL, LARGE}
    assert command(cluster, "compare", "--act").returncode == 3, "a few queries prove nothing"
    shares = ("--shadow", "1.0", "--canary", "0.5", "--budget-usd", "1")
    done = command(cluster, "publish", tried, *shares, *LENIENT)
    assert done.returncode == 0, done.stdout + done.stderr
    for asked in range(0, 480, 12):
        answerers(cluster, asked)
        if num_shadows(cluster) >= 40:
            break
    done = command(cluster, "compare", "--act")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answerers(cluster) == {LARGE}, "the candidate is promoted on every replica"
    done = command(cluster, "rollback", "--gate", "g")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answerers(cluster) == {SMALL}
    assert replica_pids() == before
