"""The wiring diagram: every deployment is bound here, and nothing is looked up by name but the models' applications.

serve_config.yaml   import_path: r2_serve.app:build_model   one application per local model
                    import_path: r2_serve.app:build         the router:  Router -> Decomposer, Allocator
r2-serve publish    import_path: r2_serve.app:build_adapter_load   for moments: loads an adapter on a model's replicas

Annotations are evaluated here (no `from __future__ import annotations`): Serve reads them to validate `args`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from r2_serve.cluster.deployments import (
    AdapterLoadDeployment,
    AllocatorDeployment,
    DecomposerDeployment,
    ModelDeployment,
    RouterDeployment,
    load_on_every_replica,
)
from r2_serve.cluster.handles import MODEL_DEPLOYMENT
from r2_serve.config import AdapterLoad, ModelServerConfig, RouterConfig

Options = Mapping[str, Mapping[str, Any]]
"""Ray Serve options by deployment name, as the `deployments` of a config file give them."""
SPARE_REQUESTS = 64
"""Room for health checks and metrics beside the queue that we bound ourselves, with proper error bodies."""

Model: Any = serve.deployment(
    ModelDeployment,
    name=MODEL_DEPLOYMENT,
    max_ongoing_requests=64,
    health_check_timeout_s=60,
    graceful_shutdown_timeout_s=120,
)
Decomposer: Any = serve.deployment(DecomposerDeployment, name="Decomposer", max_ongoing_requests=256)
Allocator: Any = serve.deployment(AllocatorDeployment, name="Allocator", max_ongoing_requests=256)
Router: Any = serve.deployment(RouterDeployment, name="Router", graceful_shutdown_timeout_s=120)

AdapterLoader: Any = serve.deployment(
    AdapterLoadDeployment,
    name="AdapterLoader",
    autoscaling_config={"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1},
)


def build(args: RouterConfig) -> Application:
    """The router's application."""
    return bind_router(args, {})


def build_model(args: ModelServerConfig) -> Application:
    """A local model's application."""
    return bind_model(args, {})


def build_adapter_load(args: AdapterLoad) -> Application:
    """Has every replica of a model load an adapter; a failure to build says which could not and why.

    For `r2-serve publish`: Serve shows that message with the application's status, where a failing `user_config` would
    cost the replica (`ModelDeployment.reconfigure`). The application itself has no replica and is removed at once.
    """
    asyncio.run(load_on_every_replica(args))
    return AdapterLoader.bind()


def bind_router(config: RouterConfig, options: Options) -> Application:
    """The router's application with `options` on top of the defaults."""
    room = config.server.max_running + config.server.max_queued + SPARE_REQUESTS
    decomposer = Decomposer.options(**options.get("Decomposer", {})).bind(config)
    allocator = Allocator.options(**options.get("Allocator", {})).bind(config)
    router = Router.options(**{"max_ongoing_requests": room, **options.get("Router", {})})
    return router.bind(config, decomposer, allocator)


def bind_model(config: ModelServerConfig, options: Options) -> Application:
    """A local model's application with `options` on top of the defaults."""
    return Model.options(**options.get(MODEL_DEPLOYMENT, {})).bind(config)
