"""The wiring diagram: all deployments are bound here, and only the models' applications are looked up by
name.

serve_config.yaml   import_path: r2_serve.app:build_model   one application per local model
                    import_path: r2_serve.app:build         the router:  Router -> Decomposer, Allocator
r2-serve publish    import_path: r2_serve.app:build_adapter_load   for moments: loads an adapter

Annotations are evaluated here (no `from __future__ import annotations`), as Serve reads them to validate
`args`.
"""

import asyncio
from collections.abc import Mapping

from ray import serve
from ray.serve import Application, Deployment

from r2_serve.cluster.deployments import (
    AdapterLoadDeployment,
    AllocatorDeployment,
    DecomposerDeployment,
    ModelDeployment,
    RouterDeployment,
    check_file_on_every_replica,
    load_on_every_replica,
)
from r2_serve.config import AdapterLoad, FittedCheck, ModelServerConfig, RouterConfig
from r2_serve.serve_config.applications import ALLOCATOR, DECOMPOSER, MODEL, ROUTER
from r2_serve.serve_config.defaults import SHUTDOWN_S, default_options

Options = Mapping[str, Mapping[str, object]]
"""Ray Serve options by deployment name, as the `deployments` of a config file give them."""
HEALTH_CHECK_S = 2.0
"""Seconds between checks of a model's replica. Serve finds out by them that an idle replica has died, and its
own 10 s would send calls to it for that long."""
HEALTH_CHECK_TIMEOUT_S = 60
"""Seconds that a busy replica may take to answer such a check."""

Model: Deployment = serve.deployment(
    ModelDeployment,
    name=MODEL,
    health_check_period_s=HEALTH_CHECK_S,
    health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    graceful_shutdown_timeout_s=SHUTDOWN_S,
)
Decomposer: Deployment = serve.deployment(
    DecomposerDeployment,
    name=DECOMPOSER,
    health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    graceful_shutdown_timeout_s=SHUTDOWN_S,
)
Allocator: Deployment = serve.deployment(
    AllocatorDeployment,
    name=ALLOCATOR,
    health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    graceful_shutdown_timeout_s=SHUTDOWN_S,
)
Router: Deployment = serve.deployment(
    RouterDeployment,
    name=ROUTER,
    health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    graceful_shutdown_timeout_s=SHUTDOWN_S,
)
AdapterLoader: Deployment = serve.deployment(
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
    """Makes every replica of a model load an adapter; if one cannot, the build fails and says why.

    `r2-serve publish` uses it because Serve shows that message as the application's status, while a failing
    `user_config` would cost the replica (`ModelDeployment.reconfigure`). The application itself has no
    replica and is removed at once.
    """
    asyncio.run(load_on_every_replica(args))
    return AdapterLoader.bind()


def build_fitted_check(args: FittedCheck) -> Application:
    """Makes every router replica read a fitted file; if one cannot, the build fails and says why.

    `r2-serve publish` uses it before it routes by the file. The application has no replica and is removed at
    once.
    """
    asyncio.run(check_file_on_every_replica(args))
    return AdapterLoader.bind()


def bind_router(config: RouterConfig, options: Options) -> Application:
    """The router's application with `options` on top of the defaults."""
    defaults = default_options(config)
    router, decomposer, allocator = (
        deployment.options(**{**defaults[deployment.name], **options.get(deployment.name, {})})
        for deployment in (Router, Decomposer, Allocator)
    )
    return router.bind(config, decomposer.bind(config), allocator.bind(config))


def bind_model(config: ModelServerConfig, options: Options) -> Application:
    """A local model's application with `options` on top of the defaults."""
    return Model.options(**{**default_options(config)[MODEL], **options.get(MODEL, {})}).bind(config)
