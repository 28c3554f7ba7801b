"""A config file through `serve deploy`, as on a cluster: builders are imported by path, and routing changes live."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.deployed_cluster import DeployedCluster, replica_pids, running_cluster, until
from tests.scripted_pool import LARGE, SMALL, scripted_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedCluster]:
    with running_cluster(tmp_path_factory.mktemp("deploy")) as cluster:
        yield cluster


def test_a_deployed_file_answers_and_its_routing_changes_without_a_restart(cluster: DeployedCluster) -> None:
    cluster.deploy(scripted_config())
    until(lambda: cluster.get("/health/ready").status_code == 200)
    first = cluster.ask("r2").json()
    assert [result["model"] for result in first["r2"]["trace"]["results"]] == [SMALL, SMALL, LARGE]
    pids = replica_pids()

    cluster.deploy(scripted_config(virtual={"policy": f"all:{SMALL}"}))
    until(lambda: cluster.ask("r2").json()["r2"]["policy"] == f"all:{SMALL}")
    changed = cluster.ask("r2").json()
    assert {result["model"] for result in changed["r2"]["trace"]["results"]} == {SMALL}
    assert replica_pids() == pids


def test_the_dashboard_asks_for_the_token(cluster: DeployedCluster) -> None:
    url = f"{cluster.dashboard}/api/jobs/"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert httpx.get(url, timeout=10).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 200
