"""What the Ray Serve deployments do: thin shells around the router core. `r2_serve.app` names and binds them.

`Model` wraps one engine; `Decomposer` and `Allocator` are stateless (how to work comes with each query, so a query
sees one version of the routing everywhere); `Router` is the HTTP ingress and runs the pipeline.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from r2_serve.allocator import AllocationResult, Allocator
from r2_serve.config import (
    AllocatorConfig,
    DecomposerConfig,
    HostedEngineConfig,
    LimitsConfig,
    ModelConfig,
    ModelServerConfig,
    ModelTunables,
    RouterConfig,
)
from r2_serve.decomposer import Decomposer, Decomposition
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError
from r2_serve.http.api import create_app
from r2_serve.http.keys import require_keys
from r2_serve.http.metrics import Metrics
from r2_serve.ledger import Budget
from r2_serve.pipeline import Pipeline, Sink
from r2_serve.pool import build_pool
from r2_serve.redaction import Redactor, redact_logs
from r2_serve.router import Router, parse_routing
from r2_serve.served import ServedAllocator, ServedDecomposer, ServedEngine
from r2_serve.traces import TraceWriter
from r2_serve.types import Completion, Delta, Engine, Message, Plan, Sampling

READY_CACHE_S = 1.0


class ModelDeployment:
    """One local model on one engine. `user_config` is `ModelTunables`."""

    def __init__(self, config: ModelServerConfig) -> None:
        redact_logs(Redactor.of())
        self._engine: Any = make_engine(config.engine)
        self._adapters: dict[str, str] = {}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load and drop LoRA adapters without a restart; requests under way keep theirs."""
        wanted = ModelTunables.model_validate(user_config).adapters
        if wanted and not hasattr(self._engine, "add_adapter"):
            raise ConfigError(f"this engine loads no adapters, but user_config names {sorted(wanted)}")
        for name in self._adapters.keys() - wanted.keys():
            await self._engine.remove_adapter(name)
        for name in wanted.keys() - self._adapters.keys():
            self._engine.add_adapter(name, wanted[name])
        self._adapters = dict(wanted)

    async def generate(self, messages: Sequence[Message], sampling: Sampling, adapter: str | None, timeout_s: float | None) -> Completion:
        completion: Completion = await self._engine.generate(messages, sampling, adapter=adapter, timeout_s=timeout_s)
        return completion

    async def stream(
        self, messages: Sequence[Message], sampling: Sampling, adapter: str | None, timeout_s: float | None
    ) -> AsyncGenerator[Delta, None]:
        async for delta in self._engine.stream(messages, sampling, adapter=adapter, timeout_s=timeout_s):
            yield delta

    async def check_health(self) -> None:
        """Fails when the engine inside is dead though the actor lives."""
        check = getattr(self._engine, "check_health", None)
        if check is not None:
            outcome = check()
            if inspect.isawaitable(outcome):
                await outcome


class DecomposerDeployment:
    """Queries into plans; its model is called by handle or at its provider."""

    def __init__(self, config: RouterConfig) -> None:
        redact_logs(redactor_of(config))
        self._decomposer = Decomposer(build_pool(config.models, cluster_engine))

    async def decompose(self, query: str, config: DecomposerConfig, limits: LimitsConfig, budget: Budget) -> Decomposition:
        return await self._decomposer.decompose(query, config, limits, budget)


class AllocatorDeployment:
    """Plans into allocations."""

    def __init__(self, config: RouterConfig) -> None:
        redact_logs(redactor_of(config))
        self._allocator = Allocator(build_pool(config.models, cluster_engine))

    async def allocate(
        self, query: str, plan: Plan, config: AllocatorConfig, names: Sequence[str], fallback_model: str, max_attempts: int, budget: Budget
    ) -> AllocationResult:
        return await self._allocator.allocate(query, plan, config, names, fallback_model, max_attempts, budget)


@serve.ingress()
class RouterDeployment:
    """The OpenAI endpoint. Not ready until `user_config` has brought the routing.

    Raises: ConfigError where it would be open to the network without a key.
    """

    def __init__(self, config: RouterConfig, decomposer: DeploymentHandle, allocator: DeploymentHandle) -> None:
        self._redact = redactor_of(config)
        redact_logs(self._redact)
        require_keys(_http_host(), config.server)
        pool = build_pool(config.models, cluster_engine)
        decomposes, allocates = ServedDecomposer(decomposer, pool), ServedAllocator(allocator, pool)
        self._server, self._metrics = config.server, Metrics()
        sinks: list[Sink] = [self._metrics.observe]
        if config.server.trace_dir:
            sinks.append(TraceWriter(Path(config.server.trace_dir), redact=self._redact))
        self._router = Router(config, lambda routing: Pipeline(pool, routing, decomposes, allocates, sinks), _Readiness(config))

    def __serve_build_asgi_app__(self) -> Any:
        return _LeaveRequestIdToServe(create_app(self._router, self._server, metrics=self._metrics, redact=self._redact))

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new routing for the queries to come. Raises: ConfigError, which keeps the old one."""
        self._router.route_by(parse_routing(user_config))


def cluster_engine(model: ModelConfig) -> Engine:
    """Local models by handle, hosted ones from this very process."""
    if model.engine.kind == "served":
        return ServedEngine(model.engine.app)
    return make_engine(model.engine)


def redactor_of(config: RouterConfig) -> Redactor:
    """Of every secret that `config` names, and those that are called so."""
    hosted = (model.engine.api_key_env for model in config.models if isinstance(model.engine, HostedEngineConfig))
    return Redactor.of(names=[config.server.api_keys_env, *hosted])


def _http_host() -> str:
    """The address that Serve's proxies listen on."""
    return str(_get_global_client().http_config.host)


class _LeaveRequestIdToServe:
    """Drops our `x-request-id` from responses: Serve's proxy gives the app the same id and appends the header itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_request_id(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, without_request_id)


class _Readiness:
    """Whether every application the router calls is running; asked of the controller at most once a second."""

    def __init__(self, config: RouterConfig) -> None:
        self._apps = sorted({model.engine.app for model in config.models if model.engine.kind == "served"})
        self._known_until = 0.0
        self._missing: list[str] = []

    async def __call__(self) -> str | None:
        """None when ready, else why not."""
        if time.monotonic() >= self._known_until:
            self._missing = await asyncio.to_thread(self._not_running)
            self._known_until = time.monotonic() + READY_CACHE_S
        return f"waiting for applications {self._missing}" if self._missing else None

    def _not_running(self) -> list[str]:
        applications = serve.status().applications
        return [
            name
            for name in self._apps
            if name not in applications or applications[name].status not in (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING)
        ]
