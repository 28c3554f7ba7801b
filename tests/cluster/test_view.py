"""The router's view of the applications it calls; the test makes Serve's answers, without a cluster."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from r2_serve.config import RouterConfig, RoutingConfig

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


STAGES = {"decomposer": {"model": "small"}, "allocator": {"model": "small"}}
SMALL_ALONE = RoutingConfig.model_validate({"virtual_models": {"r2": {"pool": ["small"], **STAGES}}})
WITH_HOSTED = RoutingConfig.model_validate(
    {"virtual_models": {"r2": {"pool": ["small", "hosted"], **STAGES}}}
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


async def seen(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Any:
    """The view of a router process. Each look gets the next of `answers`, the last one again and again."""
    from ray import serve

    from r2_serve.cluster import view

    left = list(answers)

    def asked() -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(serve, "status", asked)
    monkeypatch.setattr(view, "LOOK_S", 0.0)
    return view.ClusterView(CONFIG, "r2")


async def test_running_replicas_are_divided_by_the_number_of_routers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = await seen(monkeypatch, status(small=3, routers=2))
    assert view.replicas("small") is None, (
        "nothing is known before the first look, which never holds up a query"
    )
    assert await view.readiness(SMALL_ALONE) == (True, "")
    await asyncio.gather(*[view._looking] if view._looking else [])
    assert view.replicas("small") == 1.5 and view.replicas("hosted") is None


@pytest.mark.parametrize(
    "answer",
    [status(small=0, routers=1, state="DEPLOY_FAILED"), SimpleNamespace(applications={})],
    ids=["failed", "not deployed"],
)
async def test_router_is_ready_without_a_model_that_others_stand_in_for(
    monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    view = await seen(monkeypatch, answer)
    assert await view.readiness(WITH_HOSTED) == (True, "1 of 1 local models take no calls")
    assert view.unavailable() == {"small": True}
    is_ready, detail = await view.readiness(SMALL_ALONE)
    assert not is_ready and detail.startswith("1 virtual models cannot be answered")


@pytest.mark.parametrize("state", ["UNHEALTHY", "DEPLOYING"])
async def test_model_with_a_replica_takes_calls_while_its_application_is_not_well(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    view = await seen(monkeypatch, status(small=1, routers=1, state=state))
    assert await view.readiness(SMALL_ALONE) == (True, "")
    view = await seen(monkeypatch, status(small=0, routers=1, state=state))
    assert (await view.readiness(SMALL_ALONE))[0] is False


async def test_model_scaled_to_zero_takes_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    view = await seen(monkeypatch, status(small=0, routers=1))
    assert await view.readiness(SMALL_ALONE) == (True, "")


async def test_absent_controller_is_reported_and_leaves_the_router_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = RuntimeError("gone")
    view = await seen(monkeypatch, status(small=1, routers=1), away)
    assert await view.readiness(SMALL_ALONE) == (True, "")
    assert await view.readiness(SMALL_ALONE) == (True, "Serve's controller does not answer: RuntimeError")
    assert view.is_controller_absent() and view.replicas("small") == 1


async def test_router_that_has_never_seen_its_models_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    view = await seen(monkeypatch, RuntimeError("gone"))
    is_ready, detail = await view.readiness(SMALL_ALONE)
    assert not is_ready and detail.endswith("Serve's controller does not answer: RuntimeError")
    assert view.replicas("small") is None
