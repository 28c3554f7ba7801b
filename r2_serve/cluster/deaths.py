"""Why a replica died, as Ray's state (GCS) tells it: whether the call at work on it may have killed it.

Ray's error says too little. Over gRPC each death arrives as `ActorUnavailableError`, and so it does over
Ray's own calls under KubeRay, which sets their wait for the cause to 0. So the state is asked. It knows the
end of a process at once, from the node's raylet, and the end of a node only when its health checks have
failed, after about 15 s (Ray 2.60). A death that is not reported within `PATIENCE_S` is therefore taken for
the node's, whose raylet would have reported the end of a process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.core.generated.common_pb2 import ActorDiedErrorContext

from r2_serve.errors import ReplicaDied

if TYPE_CHECKING:
    from ray.core.generated.common_pb2 import ActorDeathCause

PATIENCE_S = 3.0
"""The wait for a report. A raylet needs milliseconds, or a second where the machine is overloaded."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.5
"""Between two looks into the state: the first pause, then twice as long each, up to the longest."""
NUM_KEPT = 64
"""Deaths that are remembered, as all calls of one death ask within moments."""
_CONTEXT = ActorDiedErrorContext
_INNOCENT = {
    _CONTEXT.NODE_DIED: "its node died",
    _CONTEXT.RAY_KILL: "Serve or an operator ended it",
    _CONTEXT.OUT_OF_SCOPE: "Serve dropped it",
    _CONTEXT.REF_DELETED: "Serve dropped it",
    _CONTEXT.OWNER_DIED: "its owner died",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Death:
    """The end of a replica."""

    what: str
    """What died: the replica, by its actor's id, or the node that took it along."""
    cause: str
    is_suspicious: bool
    """Whether a call that was at work on it may be the cause."""


@dataclass(frozen=True)
class ActorState:
    """What Ray's state has of a replica."""

    actor_id: str
    node_id: str = ""
    cause: ActorDeathCause | None = None
    """Why it died; None while it is not reported dead."""
    is_node_alive: bool = True


def look(actor_id: str) -> ActorState:
    """The state at present; it may block while GCS is away. Raises: Exception if Ray cannot be asked."""
    import ray
    from ray._private.state import state

    found: Mapping[str, Any] = state.actor_table(actor_id)
    if not found:
        return ActorState(actor_id)
    address, cause = found["Address"], found["DeathCause"] if found["State"] == "DEAD" else None
    node_id = address["NodeID"]
    is_alive = any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
    return ActorState(actor_id, node_id, cause, is_alive)


def death_of(actor: ActorState) -> Death | None:
    """The death as far as it is reported; None if it is not."""
    replica, node = f"replica {actor.actor_id}", f"node {actor.node_id}"
    if actor.cause is None:
        return Death(node, "its node died", False) if actor.node_id and not actor.is_node_alive else None
    if actor.cause.HasField("oom_context"):
        return Death(replica, "Ray's memory monitor ended it, as its node was out of memory", False)
    reason = actor.cause.actor_died_error_context.reason
    if reason == _CONTEXT.NODE_DIED or not actor.is_node_alive:
        return Death(node, _INNOCENT[_CONTEXT.NODE_DIED], False)
    if reason in _INNOCENT:
        return Death(replica, _INNOCENT[reason], False)
    return Death(replica, "its process ended", True)


class Deaths:
    """The deaths of one application's replicas, each looked up once however many calls it cost."""

    def __init__(self, app: str, look: Callable[[str], ActorState] = look) -> None:
        self._app, self._look = app, look
        self._found: dict[str, asyncio.Task[Death]] = {}

    async def explained(self, error: ReplicaDied) -> ReplicaDied:
        """The same error with what died, and whether the call is suspicious."""
        task = self._found.get(error.lost)
        if task is None:
            while len(self._found) >= NUM_KEPT:
                del self._found[next(iter(self._found))]
            task = self._found[error.lost] = asyncio.create_task(self._find(error.lost))
        death = await asyncio.shield(task)
        return ReplicaDied(error.message, error.retry_after_s, death.what, death.is_suspicious)

    async def _find(self, actor_id: str) -> Death:
        seen = ActorState(actor_id)
        try:
            async with asyncio.timeout(PATIENCE_S):
                pause_s = FIRST_PAUSE_S
                seen = await asyncio.to_thread(self._look, actor_id)
                while (death := death_of(seen)) is None:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                    seen = await asyncio.to_thread(self._look, actor_id)
        except Exception as e:  # noqa: BLE001 - a call must not fail because its death is not explained
            self._found.pop(actor_id, None)
            what = f"node {seen.node_id}" if seen.node_id else f"replica {actor_id}"
            death = Death(what, f"its end was not reported ({type(e).__name__}), as if its node died", False)
        _log.warning("replica %s of %s is gone: %s", actor_id, self._app, death.cause)
        return death
