"""An address that others reach, through `serve deploy`: no router starts there without client keys. No proxy
runs, so no port is open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from r2_serve.http.keys import entry_text, new_key
from tests.support.deployed_cluster import DeployedCluster, running_cluster, until
from tests.support.scripted_pool import scripted_config

pytestmark = pytest.mark.ray


def test_router_at_a_public_address_starts_only_with_client_keys(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text(entry_text(new_key("alice")[1]))
    with running_cluster(tmp_path) as cluster:
        cluster.deploy(router_only({}), host="0.0.0.0")
        until(lambda: application(cluster)["status"] in ("DEPLOY_FAILED", "RUNNING"))
        refused = application(cluster)
        cluster.deploy(router_only({"keys_file": str(keys_file)}), host="0.0.0.0")
        until(lambda: application(cluster)["status"] == "RUNNING")
    assert (
        "0.0.0.0 is not a loopback address, and neither `server.keys_file` nor `server.api_keys_env`"
        in told_by(refused)
    )


def router_only(server: dict[str, Any]) -> dict[str, Any]:
    """Its models are not deployed, as it is never asked."""
    config = scripted_config(server=server)
    return {**config, "proxy_location": "Disabled", "applications": config["applications"][-1:]}


def application(cluster: DeployedCluster) -> dict[str, Any]:
    """What Serve says of the router's application."""
    details: dict[str, Any] = httpx.get(
        f"{cluster.dashboard}/api/serve/applications/", headers=cluster.headers, timeout=10
    ).json()
    (router,) = details["applications"].values()
    return dict(router)


def told_by(details: dict[str, Any]) -> str:
    return str(details["message"]) + "".join(
        str(deployment["message"]) for deployment in details["deployments"].values()
    )
