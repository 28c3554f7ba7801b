"""A replica's death is held against the call at work on it only if its own process ended by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.smoke]
pytest.importorskip("ray")

from ray.core.generated.common_pb2 import (  # noqa: E402
    ActorDeathCause,
    ActorDiedErrorContext,
    NodeDeathInfo,
    OomContext,
)
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError  # noqa: E402

from r2_serve.calls.budget import Budget  # noqa: E402
from r2_serve.calls.caller import Caller, CallSpec  # noqa: E402
from r2_serve.calls.ledger import Ledger  # noqa: E402
from r2_serve.cluster import deaths  # noqa: E402
from r2_serve.cluster.deaths import ActorState, Deaths  # noqa: E402
from r2_serve.cluster.handles import ServedEngine  # noqa: E402
from r2_serve.config import LimitsConfig  # noqa: E402
from r2_serve.errors import PoisonousRequest, ReplicaDied  # noqa: E402
from r2_serve.types import Completion, EngineCall, Usage  # noqa: E402
from tests.support.in_process import model, pool_of, user  # noqa: E402

CALL = EngineCall(messages=user("hello"))
ACTORS = tuple(bytes([n]) * 16 for n in range(1, 5))
"""Ids of actors, as bytes."""


def died(reason: Any, **fields: Any) -> ActorDeathCause:
    context = ActorDiedErrorContext(actor_id=ACTORS[0], reason=reason, **fields)
    return ActorDeathCause(actor_died_error_context=context)


PREEMPTED = NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
PROCESS = died(ActorDiedErrorContext.WORKER_DIED)
NODE = died(ActorDiedErrorContext.NODE_DIED)
CAUSES = [
    pytest.param(PROCESS, True, "replica", id="kill -9, a crash, an engine that ends its replica"),
    pytest.param(NODE, False, "node", id="a lost node"),
    pytest.param(
        died(ActorDiedErrorContext.NODE_DIED, node_death_info=PREEMPTED), False, "node", id="a preempted node"
    ),
    pytest.param(
        died(ActorDiedErrorContext.RAY_KILL),
        False,
        "replica",
        id="ray.kill: an operator, Serve's health check",
    ),
    pytest.param(died(ActorDiedErrorContext.OUT_OF_SCOPE), False, "replica", id="scaled down"),
    pytest.param(died(ActorDiedErrorContext.REF_DELETED), False, "replica", id="redeployed"),
    pytest.param(ActorDeathCause(oom_context=OomContext()), False, "replica", id="Ray's memory monitor"),
]


@pytest.mark.parametrize(("cause", "is_suspicious", "what"), CAUSES)
def test_each_cause_that_ray_tells_is_a_suspicion_or_not(
    cause: ActorDeathCause, is_suspicious: bool, what: str
) -> None:
    death = deaths.death_of(ActorState("a1", "n1", cause))
    assert death is not None
    assert (death.is_suspicious, death.what) == (
        is_suspicious,
        f"{what} {'a1' if what == 'replica' else 'n1'}",
    )


def test_process_that_ended_with_its_node_is_the_nodes_death() -> None:
    death = deaths.death_of(ActorState("a1", "n1", PROCESS, is_node_alive=False))
    assert death is not None and (death.what, death.is_suspicious) == ("node n1", False)


class Cluster:
    """Replicas of one application that die, and what Ray's state says of them after some looks."""

    def __init__(self, cause: ActorDeathCause | None, *, num_looks: int = 1, nodes: str = "n") -> None:
        self.num_looks = self.num_asked = 0
        self._cause, self._reported_after, self._nodes = cause, num_looks, nodes
        self._actors = iter(ACTORS)

    def engine(self) -> ServedEngine:
        engine = ServedEngine("m")
        engine._deaths = Deaths("m", self.look)
        engine._handle = engine._stream_handle = self
        return engine

    def look(self, actor_id: str) -> ActorState:
        self.num_looks += 1
        is_reported = self.num_looks >= self._reported_after
        return ActorState(actor_id, self._nodes, self._cause if is_reported else None)

    @property
    def generate(self) -> Cluster:
        return self

    def remote(self, call: EngineCall) -> Any:
        self.num_asked += 1
        return self._answer(next(self._actors, None))

    async def _answer(self, actor: bytes | None) -> Completion:
        if actor is None:
            return Completion(text="ok", usage=Usage(), finish_reason="stop")
        raise ActorUnavailableError("Actor is unavailable.", actor)


async def ask(cluster: Cluster, max_attempts: int = 5) -> str:
    limits = LimitsConfig(max_attempts=max_attempts, cooldown={"first_s": 0})
    pool = pool_of((model("m"), cluster.engine()))
    caller = Caller(pool, Ledger(Budget()), limits, uniform=lambda: 0.0)
    spec = CallSpec(render=lambda codec: list(user("hello")), stage="execute")
    return (await caller.call("m", spec)).answer


async def test_query_that_loses_four_replicas_to_dying_nodes_is_answered() -> None:
    assert await ask(Cluster(NODE)) == "ok"


async def test_query_that_loses_two_replicas_whose_processes_ended_is_poisonous() -> None:
    cluster = Cluster(PROCESS, num_looks=2)
    with pytest.raises(PoisonousRequest):
        await ask(cluster)
    assert cluster.num_asked == 2


async def test_death_that_no_raylet_reports_is_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "PATIENCE_S", 0.1)
    assert await ask(Cluster(None)) == "ok"


async def test_state_that_cannot_be_asked_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(None)

    def away(actor_id: str) -> ActorState:
        raise RuntimeError("GCS is away")

    monkeypatch.setattr(cluster, "look", away)
    assert await ask(cluster) == "ok"


@pytest.mark.parametrize("cause", [PROCESS, NODE])
async def test_calls_of_one_death_look_once_and_name_the_same_loss(cause: ActorDeathCause) -> None:
    cluster = Cluster(cause)
    found = Deaths("m", cluster.look)
    lost = await asyncio.gather(*(found.explained(ReplicaDied("gone", None, "a1")) for _ in range(20)))
    assert len({error.lost for error in lost}) == 1
    assert cluster.num_looks == 1


async def test_replicas_of_one_node_are_one_loss() -> None:
    found = Deaths("m", Cluster(NODE).look)
    lost = {(await found.explained(ReplicaDied("gone", None, actor))).lost for actor in ("a1", "a2", "a3")}
    assert lost == {"node n"}


@pytest.mark.parametrize(
    ("raised", "is_suspicious"),
    [
        (lambda: ActorDiedError(PROCESS.actor_died_error_context), True),
        (lambda: ActorDiedError(NODE.actor_died_error_context), True),
        (lambda: OutOfMemoryError("Task was killed due to the node running low on memory."), False),
    ],
    ids=["process", "node, before the state is asked", "memory monitor"],
)
def test_errors_of_ray_become_deaths(raised: Callable[[], Exception], is_suspicious: bool) -> None:
    from r2_serve.cluster.handles import unwrapped

    error = unwrapped(raised())
    assert isinstance(error, ReplicaDied) and error.is_suspicious is is_suspicious
