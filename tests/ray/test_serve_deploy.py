"""A config file through `serve deploy`, as on a cluster: builders are imported by path, and routing changes
live.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.deployed_cluster import DeployedCluster, replica_pids, running_cluster, until
from tests.support.scraped import total
from tests.support.scripted_pool import LARGE, SMALL, scripted_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedCluster]:
    with running_cluster(tmp_path_factory.mktemp("deploy")) as cluster:
        yield cluster


def test_deployed_file_answers_and_its_routing_changes_without_a_restart(cluster: DeployedCluster) -> None:
    cluster.deploy(scripted_config())
    until(lambda: cluster.get("/health/ready").json() == {"status": "ready"})  # and all models take calls
    first = cluster.ask("r2").json()
    assert [result["model"] for result in first["r2"]["trace"]["results"]] == [SMALL, SMALL, LARGE]
    pids = replica_pids()

    cluster.deploy(scripted_config(virtual={"policy": f"all:{SMALL}"}))
    took_s = until(lambda: cluster.ask("r2").json()["r2"]["policy"] == f"all:{SMALL}")
    print(f"redeploy of user_config: in force {took_s:.1f} s after `serve deploy` returned")
    changed = cluster.ask("r2").json()
    assert {result["model"] for result in changed["r2"]["trace"]["results"]} == {SMALL}
    assert replica_pids() == pids


def test_restart_of_the_router_cuts_no_answer(cluster: DeployedCluster) -> None:
    """A price is in `args`, so Serve replaces the router's replicas; the old ones finish their queries."""
    slow = {"delay_s": {LARGE: 3.0}}
    cluster.deploy(scripted_config(**slow))
    until(lambda: cluster.ask(LARGE).elapsed.total_seconds() >= 3)
    until(lambda: sum("::m-large#" in name for name in replica_pids()) == 1)  # the one it replaced has gone
    before = replica_pids()
    with ThreadPoolExecutor(8) as pool:
        at_work = [pool.submit(cluster.ask, "r2") for _ in range(8)]
        until(lambda: total(cluster.get("/metrics").text, "r2_requests_running") == 8)
        cluster.deploy(scripted_config(prices_as_of="2027-01", **slow))
        replies = [future.result() for future in at_work]
    assert [reply.status_code for reply in replies] == [200] * 8
    assert {reply.json()["choices"][0]["message"]["content"] for reply in replies} == {
        "the whole answer of four"
    }
    took_s = until(lambda: cluster.ask("r2").json()["r2"]["prices_as_of"] == "2027-01")
    print(f"redeploy of args: 8 of 8 answers whole, the new router answers {took_s:.1f} s after the last")
    until(lambda: not {name for name in before if "#Router" in name} & replica_pids().keys())
    after = replica_pids()
    assert {(name, pid) for name, pid in before.items() if "#Model" in name} <= after.items(), (
        "no model was touched"
    )


def test_dashboard_asks_for_the_token(cluster: DeployedCluster) -> None:
    url = f"{cluster.dashboard}/api/jobs/"
    assert httpx.get(url, timeout=10).status_code == 401
    assert httpx.get(url, headers=cluster.headers, timeout=10).status_code == 200
