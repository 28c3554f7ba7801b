"""What the router sees of the applications it calls: which run, and on how many replicas. Asked of Serve's controller.

At most once a second, and in a thread, as the answer may take as long as the controller likes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from ray import serve
from ray.serve.schema import ApplicationStatus

from r2_serve.cluster.handles import MODEL_DEPLOYMENT
from r2_serve.config import RouterConfig

LOOK_S = 1.0
ROUTER_DEPLOYMENT = "Router"


class ClusterView:
    """Of one router process."""

    def __init__(self, config: RouterConfig, own_app: str) -> None:
        self.app_of = {
            model.name: model.engine.app for model in config.models if model.engine.kind == "served"
        }
        """Application of each local model."""
        self._own_app = own_app
        self._known_until_s = 0.0
        self._trouble: str | None = None
        self._replicas: Mapping[str, int] = {}
        self._num_routers = 1
        self._looking: asyncio.Task[None] | None = None

    async def unready(self) -> str | None:
        """None when every application runs, else why not."""
        await self._look()
        return self._trouble

    def replicas(self, model: str) -> float | None:
        """Running replicas of a local model by the number of routers, as of the last look; None before it, or for a hosted model.

        Never waits: it has the next look begun where it is due.
        """
        if time.monotonic() >= self._known_until_s and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())
        count = self._replicas.get(self.app_of.get(model, ""))
        return None if count is None else count / self._num_routers

    async def _look(self) -> None:
        if time.monotonic() < self._known_until_s:
            return
        self._known_until_s = time.monotonic() + LOOK_S
        try:
            applications = (await asyncio.to_thread(serve.status)).applications
        except Exception as e:  # noqa: BLE001 - the controller is away: what is known of replicas stays
            self._trouble = f"Serve's controller does not answer: {type(e).__name__}"
            return
        good = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING)
        apps = set(self.app_of.values())
        missing = sorted(
            app for app in apps if app not in applications or applications[app].status not in good
        )
        self._trouble = f"waiting for applications {missing}" if missing else None
        running = {
            (app, name): deployment.replica_states.get("RUNNING", 0)
            for app in (*apps, self._own_app)
            if app in applications
            for name, deployment in applications[app].deployments.items()
        }
        self._replicas = {app: running.get((app, MODEL_DEPLOYMENT), 0) for app in apps}
        self._num_routers = max(1, running.get((self._own_app, ROUTER_DEPLOYMENT), 1))
