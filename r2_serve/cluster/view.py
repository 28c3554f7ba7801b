"""The applications that the router calls, as Serve's controller sees them: which run, and on how many
replicas.

It asks at most once a second, and in a thread, because the controller may take its time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from r2_serve.config import ModelServerConfig, RouterConfig, RoutingConfig, with_engines
from r2_serve.router.able import last_resorts
from r2_serve.serve_config.applications import MODEL, ROUTER

LOOK_S = 1.0


def with_deployed_engines(config: RouterConfig) -> RouterConfig:
    """`config`, where each served model knows the engine of its application, if that was deployed from a
    file.
    """
    applications = {
        name: server
        for name, details in _get_global_client().get_serve_details()["applications"].items()
        if (server := _model_server(details)) is not None
    }
    return config.model_copy(update={"models": with_engines(config.models, applications)})


def _model_server(details: Mapping[str, Any]) -> ModelServerConfig | None:
    """The `args` of an application of ours that runs a model; None for any other application."""
    try:
        return ModelServerConfig.model_validate((details.get("deployed_app_config") or {}).get("args"))
    except ValidationError:
        return None


class ClusterView:
    """The view of one router process."""

    def __init__(self, config: RouterConfig, own_app: str) -> None:
        self.app_of = {
            model.name: model.engine.app for model in config.models if model.engine.kind == "served"
        }
        """Application of each local model."""
        self._models = {model.name: model for model in config.models}
        self._own_app = own_app
        self._known_until_s = 0.0
        self._trouble: str | None = None
        self._takes_calls: Mapping[str, bool] = {}
        """Which applications take calls, as of the last look."""
        self._replicas: Mapping[str, int] = {}
        self._num_routers = 1
        self._looking: asyncio.Task[None] | None = None

    async def readiness(self, routing: RoutingConfig) -> tuple[bool, str]:
        """Whether some model answers for each virtual model, and what is not well.

        The text names no models, as everybody may read it.
        """
        await self._look()
        unanswered = sum(
            all(self._is_unavailable(model) for model in last_resorts(virtual, self._models))
            for virtual in routing.virtual_models.values()
        )
        missing = sum(self.unavailable().values())
        faults = [f"{unanswered} virtual models cannot be answered"] if unanswered else []
        faults += [f"{missing} of {len(self.app_of)} local models take no calls"] if missing else []
        faults += [self._trouble] if self._trouble else []
        return unanswered == 0, "; ".join(faults)

    def unavailable(self) -> dict[str, bool]:
        """Whether a local model takes no calls, by name, as of the last look."""
        self._look_if_due()
        return {name: self._is_unavailable(name) for name in self.app_of}

    def running(self) -> dict[str, int]:
        """Running replicas of each local model, by name, as of the last look; empty before the first."""
        self._look_if_due()
        return {name: self._replicas[app] for name, app in self.app_of.items() if app in self._replicas}

    def is_controller_absent(self) -> bool:
        """Whether Serve's controller did not answer the last look."""
        return self._trouble is not None

    def replicas(self, model: str) -> float | None:
        """Running replicas of a local model, divided by the number of routers, as of the last look.

        None before the first look and for a hosted model. It never waits: it starts the next look if that is
        due.
        """
        self._look_if_due()
        count = self._replicas.get(self.app_of.get(model, ""))
        return None if count is None else count / self._num_routers

    def _is_unavailable(self, model: str) -> bool:
        """False for a hosted model: nothing is asked of its provider for this."""
        return model in self.app_of and not self._takes_calls.get(self.app_of[model], False)

    def _look_if_due(self) -> None:
        if time.monotonic() >= self._known_until_s and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """While the controller is away, what was seen last stays: replicas go on without it."""
        if time.monotonic() < self._known_until_s:
            return
        self._known_until_s = time.monotonic() + LOOK_S
        try:
            applications = (await asyncio.to_thread(serve.status)).applications
        except Exception as e:  # noqa: BLE001 - the last counts stay
            self._trouble = f"Serve's controller does not answer: {type(e).__name__}"
            return
        self._trouble = None
        apps = set(self.app_of.values())
        running = {
            (app, name): deployment.replica_states.get("RUNNING", 0)
            for app in (*apps, self._own_app)
            if app in applications
            for name, deployment in applications[app].deployments.items()
        }
        self._replicas = {app: running.get((app, MODEL), 0) for app in apps}
        # An application that runs with no replica was scaled to zero: the next call starts one.
        self._takes_calls = {
            app: count > 0 or (app in applications and applications[app].status == ApplicationStatus.RUNNING)
            for app, count in self._replicas.items()
        }
        self._num_routers = max(1, running.get((self._own_app, ROUTER), 1))
