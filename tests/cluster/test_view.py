"""The router's view of the applications it calls; the test makes Serve's answers, without a cluster."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from r2_serve.config import RouterConfig

pytestmark = [pytest.mark.ray, pytest.mark.smoke]

CONFIG = RouterConfig.model_validate(
    {
        "models": [
            {
                "name": "small",
                "usd_per_mtok_in": 1,
                "usd_per_mtok_out": 1,
                "engine": {"kind": "served", "app": "m-small"},
            },
            {
                "name": "hosted",
                "usd_per_mtok_in": 1,
                "usd_per_mtok_out": 1,
                "engine": {"kind": "openai", "model": "m"},
            },
        ]
    }
)


def status(*, small: int, routers: int, state: str = "RUNNING") -> Any:
    def deployment(count: int) -> Any:
        return SimpleNamespace(replica_states={"RUNNING": count, "STARTING": 5})

    return SimpleNamespace(
        applications={
            "m-small": SimpleNamespace(status=state, deployments={"Model": deployment(small)}),
            "r2": SimpleNamespace(status="RUNNING", deployments={"Router": deployment(routers)}),
        }
    )


async def seen(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Any:
    from ray import serve

    from r2_serve.cluster.view import ClusterView

    def asked() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(serve, "status", asked)
    return ClusterView(CONFIG, "r2")


async def test_running_replicas_are_divided_by_the_number_of_routers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = await seen(monkeypatch, status(small=3, routers=2))
    assert view.replicas("small") is None, (
        "nothing is known before the first look, which never holds up a query"
    )
    assert await view.unready() is None
    await asyncio.gather(*[view._looking] if view._looking else [])
    assert view.replicas("small") == 1.5 and view.replicas("hosted") is None


async def test_missing_or_failed_application_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    view = await seen(monkeypatch, status(small=0, routers=1, state="DEPLOY_FAILED"))
    assert await view.unready() == "waiting for applications ['m-small']"
    view = await seen(monkeypatch, SimpleNamespace(applications={}))
    assert "m-small" in str(await view.unready())


async def test_missing_controller_is_reported_and_fails_no_query(monkeypatch: pytest.MonkeyPatch) -> None:
    view = await seen(monkeypatch, RuntimeError("gone"))
    assert await view.unready() == "Serve's controller does not answer: RuntimeError"
    assert view.replicas("small") is None
