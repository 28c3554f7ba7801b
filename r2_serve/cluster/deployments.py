"""What the Ray Serve deployments do: thin shells around the router core. `r2_serve.app` names and binds them.

`Model` wraps one engine; `Decomposer` and `Allocator` are stateless (how to work comes with each query, so a query
sees one version of the routing everywhere); `Router` is the HTTP ingress and runs the pipeline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as ASGIMessage

from r2_serve.adapters import MANIFEST, check_codec_version, read_adapter
from r2_serve.calls.budget import Budget
from r2_serve.calls.pool import build_pool
from r2_serve.cluster.handles import (
    MODEL_DEPLOYMENT,
    ServedAllocator,
    ServedDecomposer,
    ServedEngine,
    unwrapped,
)
from r2_serve.cluster.metrics import ReplicaMetrics
from r2_serve.cluster.stages import StageReport, report_of
from r2_serve.cluster.view import ClusterView
from r2_serve.config import (
    AdapterLoad,
    DecomposerConfig,
    HostedEngineConfig,
    LimitsConfig,
    ModelConfig,
    ModelServerConfig,
    ModelTunables,
    RouterConfig,
    RoutingConfig,
)
from r2_serve.engines import make_engine, make_local_engine
from r2_serve.engines.sharing import SharedTime
from r2_serve.errors import ConfigError, EngineUnavailable
from r2_serve.http.admission import Admission
from r2_serve.http.api import create_app
from r2_serve.http.keys import require_keys
from r2_serve.http.metrics import Metrics
from r2_serve.http.redaction import Redactor, redact_logs
from r2_serve.router.allocator import AllocationResult, AllocationTask, Allocator
from r2_serve.router.decomposer import Decomposer, Decomposition
from r2_serve.router.demand import Demand, ModelDemand, total
from r2_serve.router.pipeline import Pipeline, Sink
from r2_serve.router.router import Router, parse_routing
from r2_serve.scaling.demand_board import write_forecasts
from r2_serve.traces import TraceWriter
from r2_serve.types import Completion, Delta, Engine, EngineCall, LocalEngine

_log = logging.getLogger(__name__)


def _log_with_serve(redact: Redactor) -> None:
    """Our log lines go where those of Serve's replica go, by `logging_config`, also when that changes; without secrets."""
    redact_logs(redact)
    logging.getLogger("r2_serve").parent = logging.getLogger("ray.serve")


class ModelDeployment:
    """One local model on one engine. `user_config` is `ModelTunables`."""

    def __init__(self, config: ModelServerConfig) -> None:
        _log_with_serve(Redactor.of())
        self._engine: LocalEngine = make_local_engine(config.engine)
        self._adapters: dict[str, str] = {}
        """Loaded here, by name, on top of those the engine started with."""
        self._time = SharedTime()
        self._changing = asyncio.Lock()
        self._has_started = False

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load and drop adapters without a restart; requests under way keep theirs. All or nothing.

        Serve stops a replica whose `reconfigure` raises, and the next one would fail as well. So one that serves keeps
        what it has and logs why; only a replica that starts raises, which Serve shows as the application's message.
        """
        try:
            await self._change_to(ModelTunables.model_validate(user_config).adapters)
        except Exception as e:
            if not self._has_started:
                raise
            _log.error("user_config of Model refused, the adapters stay %s: %s", sorted(self._adapters), e)

    async def load_adapter(self, name: str, path: str) -> None:
        """Load it before `user_config` names it; until then the next change of `user_config` would drop it again.

        Raises: ConfigError where this replica cannot: nothing has changed then.
        """
        await self._change_to({**self._adapters, name: path})

    async def _change_to(self, wanted: dict[str, str]) -> None:
        async with self._changing:
            moved = sorted(name for name, path in self._adapters.items() if wanted.get(name, path) != path)
            if moved:
                raise ConfigError(
                    f"adapters {moved} are loaded from another directory: a new version needs a new name"
                )
            await self._add({name: path for name, path in wanted.items() if name not in self._adapters})
            for name in self._adapters.keys() - wanted.keys():
                await self._engine.unload_adapter(name)
            self._adapters = dict(wanted)

    async def _add(self, adapters: Mapping[str, str]) -> None:
        """All of them, or none. Raises: ConfigError."""
        added: list[str] = []
        try:
            for name, path in adapters.items():
                await asyncio.to_thread(_check_on_disk, name, Path(path))
                await self._engine.load_adapter(name, path)
                added.append(name)
        except BaseException:
            for name in added:
                await self._engine.unload_adapter(name)
            raise

    async def generate(self, call: EngineCall) -> Completion:
        with self._time.call() as work:
            completion = await self._engine.generate(call)
            return completion.model_copy(update={"work": work()})

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        with self._time.call() as work:
            async for delta in self._engine.stream(call):
                yield delta if delta.finish_reason is None else delta.model_copy(update={"work": work()})

    async def check_health(self) -> None:
        """Fails when the engine inside is dead though the actor lives. Serve's first one, after `reconfigure`, ends the start."""
        await self._engine.check_health()
        self._has_started = True


class DecomposerDeployment:
    """Queries into plans; its model is called by handle or at its provider."""

    def __init__(self, config: RouterConfig) -> None:
        _log_with_serve(redactor_of(config))
        self._decomposer = Decomposer(build_pool(config.models, cluster_engine))

    async def decompose(
        self, query: str, config: DecomposerConfig, limits: LimitsConfig, budget: Budget
    ) -> StageReport[Decomposition]:
        return await report_of(
            lambda ledger: self._decomposer.decompose(query, config, limits, ledger), budget
        )


class AllocatorDeployment:
    """Plans into allocations."""

    def __init__(self, config: RouterConfig) -> None:
        _log_with_serve(redactor_of(config))
        self._allocator = Allocator(build_pool(config.models, cluster_engine))

    async def allocate(self, task: AllocationTask, budget: Budget) -> StageReport[AllocationResult]:
        return await report_of(lambda ledger: self._allocator.allocate(task, ledger), budget)


@serve.ingress()
class RouterDeployment:
    """The OpenAI endpoint. Not ready until `user_config` has brought the routing.

    Raises: ConfigError where it would be open to the network without a key.
    """

    def __init__(
        self, config: RouterConfig, decomposer: DeploymentHandle, allocator: DeploymentHandle
    ) -> None:
        self._redact = redactor_of(config)
        _log_with_serve(self._redact)
        require_keys(_http_host(), config.server)
        pool = build_pool(config.models, cluster_engine)
        decomposes, allocates = ServedDecomposer(decomposer, pool), ServedAllocator(allocator, pool)
        self._server, self._metrics = config.server, Metrics()
        self._replica_metrics = ReplicaMetrics(self._metrics.render)
        self._metrics.watch_models(pool)
        replica = serve.get_replica_context()
        self._name = replica.replica_id.unique_id
        self._view, self._demand = ClusterView(config, replica.app_name), Demand()
        self._writing: asyncio.Task[None] | None = None
        self._admission = Admission(config.server.max_running, config.server.max_queued)
        sinks: list[Sink] = [self._metrics.observe]
        if config.server.trace_dir:
            sinks.append(TraceWriter(Path(config.server.trace_dir), redact=self._redact))

        def make_pipeline(routing: RoutingConfig) -> Pipeline:
            return Pipeline(pool, routing, decomposes, allocates, sinks, self._view.replicas, self._demand)

        self._router = Router(config, make_pipeline, self._view.unready)

    def __serve_build_asgi_app__(self) -> Any:
        scrape = self._replica_metrics.every_page
        app = create_app(
            self._router,
            self._server,
            metrics=self._metrics,
            admission=self._admission,
            redact=self._redact,
            scrape=scrape,
        )
        return _LeaveRequestIdToServe(app)

    def metrics_page(self) -> bytes:
        """What this replica has counted, for the replica that is scraped."""
        return self._replica_metrics.page()

    async def finish(self) -> None:
        """Takes no new requests, and returns when those at work are answered. There is no way back: for the end of a local cluster."""
        self._admission.close()
        await self._admission.idle()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new routing for the queries to come. A wrong one is logged and the old one stays, as in `ModelDeployment`."""
        if self._writing is None:
            self._writing = asyncio.create_task(write_forecasts(self._name, self._forecasts))
        try:
            self._router.route_by(parse_routing(user_config))
        except ConfigError as e:
            if not self._router.models():
                raise
            _log.error("user_config of Router refused, the routing stays: %s", e)

    def _forecasts(self) -> dict[str, ModelDemand]:
        """What will be asked of each local model's application."""
        app_of = self._view.app_of
        return total(
            [{app_of[model]: demand} for model, demand in self._demand.forecast().items() if model in app_of]
        )


class AdapterLoadDeployment:
    """Nothing: an application must have a deployment. `r2_serve.app.build_adapter_load` says what its application is for."""


async def load_on_every_replica(load: AdapterLoad) -> None:
    """Raises: ConfigError where a replica cannot load the adapter; EngineUnavailable where none is there."""
    handle = serve.get_deployment_handle(MODEL_DEPLOYMENT, load.app)
    try:
        outcomes = await handle.broadcast("load_adapter", load.name, load.path).results_async(
            timeout_s=load.timeout_s, return_exceptions=True
        )
    except Exception as e:
        raise EngineUnavailable(f"application {load.app!r} does not answer: {type(e).__name__}: {e}") from e
    failures = [unwrapped(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    if failures:
        raise ConfigError(
            f"{len(failures)} of {len(outcomes)} replicas of {load.app!r} cannot load it: {failures[0].message}"
        )


def cluster_engine(model: ModelConfig) -> Engine:
    """Local models by handle, hosted ones from this very process."""
    if model.engine.kind == "served":
        return ServedEngine(model.engine.app)
    return make_engine(model.engine)


def redactor_of(config: RouterConfig) -> Redactor:
    """Of every secret that `config` names, and those that are called so."""
    hosted = (
        model.engine.api_key_env for model in config.models if isinstance(model.engine, HostedEngineConfig)
    )
    return Redactor.of(names=[config.server.api_keys_env, *hosted])


def _http_host() -> str:
    """The address that Serve's proxies listen on."""
    return str(_get_global_client().http_config.host)


def _check_on_disk(name: str, directory: Path) -> None:
    """Where there is a manifest it must hold; adapters of other origin have none. Raises: ConfigError."""
    if not (directory / MANIFEST).is_file():
        return
    manifest = read_adapter(directory)
    if manifest.name != name:
        raise ConfigError(
            f"{directory} holds adapter {manifest.name!r}, not {name!r}: call it by its own name"
        )
    check_codec_version(manifest)


class _LeaveRequestIdToServe:
    """Drops our `x-request-id` from responses: Serve's proxy gives the app the same id and appends the header itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without_request_id(message: ASGIMessage) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"
                ]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, without_request_id)
