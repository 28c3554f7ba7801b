"""The Ray Serve deployments: thin shells around the router core. `r2_serve.app` names and binds them.

`Model` wraps one engine. `Decomposer` and `Allocator` are stateless: the way to work comes with each query,
so a query sees one version of the routing everywhere. `Router` is the HTTP ingress and runs the pipeline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping

from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r2_serve.calls.budget import Budget
from r2_serve.calls.pool import build_pool
from r2_serve.cluster.adapter_slots import AdapterSlots
from r2_serve.cluster.handles import ServedAllocator, ServedDecomposer, ServedEngine, unwrapped
from r2_serve.cluster.metrics import ReplicaMetrics
from r2_serve.cluster.siblings import Caught, Replicas, SiblingEvents
from r2_serve.cluster.stages import StageReport, report_of
from r2_serve.cluster.start_log import StartLog
from r2_serve.cluster.view import ClusterView, with_deployed_engines
from r2_serve.config import (
    AdapterLoad,
    DecomposerConfig,
    FittedCheck,
    LimitsConfig,
    ModelConfig,
    ModelServerConfig,
    ModelTunables,
    RouterConfig,
    RoutingConfig,
)
from r2_serve.engines import make_engine, make_local_engine
from r2_serve.engines.sharing import SharedTime
from r2_serve.errors import ConfigError, EngineDied, EngineError, EngineUnavailable
from r2_serve.feedback import FeedbackStore
from r2_serve.http.admission import Admission
from r2_serve.http.api import create_app
from r2_serve.http.keys import require_keys
from r2_serve.http.metrics import Metrics
from r2_serve.http.redaction import Redactor, redact_logs, redactor_of
from r2_serve.http.spend import shadow_purses
from r2_serve.otel import telemetry_sinks
from r2_serve.router.allocator import AllocationResult, AllocationTask, Allocator
from r2_serve.router.decomposer import Decomposer, Decomposition, Messages
from r2_serve.router.demand import Demand, ModelDemand, total
from r2_serve.router.fitted_plan import read_fitted_plan
from r2_serve.router.gates import read_gate_file
from r2_serve.router.pipeline import Pipeline, Sink
from r2_serve.router.router import Router, parse_routing
from r2_serve.scaling.demand_board import write_forecasts
from r2_serve.serve_config.applications import MODEL, ROUTER
from r2_serve.traces import TraceWriter
from r2_serve.types import Completion, Delta, Engine, EngineCall, TraceContext

_log = logging.getLogger(__name__)
NO_GROUP = (
    "this replica has no process group of its own, so if it is killed, vLLM's process keeps the GPU: "
    "start Ray with RAY_process_group_cleanup_enabled=1 on each node"
)


def _log_with_serve(redact: Redactor) -> None:
    """Sends our log lines, without secrets, where Serve's `logging_config` sends those of the replica."""
    redact_logs(redact)
    logging.getLogger("r2_serve").parent = logging.getLogger("ray.serve")


class ModelDeployment:
    """One local model on one engine. Its `user_config` is a `ModelTunables`."""

    def __init__(self, config: ModelServerConfig) -> None:
        self._start = StartLog()
        _log_with_serve(Redactor.of())
        if config.engine.kind == "vllm" and os.getpgrp() != os.getpid():
            _log.warning(NO_GROUP)
        self._engine = make_local_engine(config.engine, is_in_replica=True)
        self._start.engine_is_ready()
        self._adapters = AdapterSlots(self._engine)
        self._time = SharedTime()
        self._has_started = False

    async def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Loads and drops adapters without a restart, all or nothing.

        Serve stops a replica whose `reconfigure` raises, and the next replica would fail too. So a replica
        that serves keeps its adapters and logs the error; a replica that starts raises it, and Serve shows
        it.
        """
        try:
            await self._adapters.change_to(ModelTunables.model_validate(user_config).adapters)
        except Exception as e:
            if not self._has_started:
                raise
            _log.error("user_config of Model refused, the adapters stay %s: %s", self._adapters.names, e)

    async def load_adapter(self, name: str, path: str) -> None:
        """Loads an adapter that no `user_config` names yet; the next change of `user_config` must name it.

        Raises: ConfigError if this replica cannot load it; nothing has changed then.
        """
        await self._adapters.load(name, path)

    async def unload_adapter(self, name: str) -> None:
        """Drops an adapter that `load_adapter` loaded."""
        await self._adapters.unload(name)

    async def generate(self, call: EngineCall) -> Completion:
        began_s = time.monotonic()
        with self._time.call() as work:
            try:
                completion = await self._engine.generate(call)
            except EngineError:
                await self._end_with_its_engine()
                raise
            self._start.first_token(began_s)
            return completion.model_copy(update={"work": work()})

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        began_s = time.monotonic()
        with self._time.call() as work:
            try:
                async for delta in self._engine.stream(call):
                    self._start.first_token(began_s)
                    yield delta if delta.finish_reason is None else delta.model_copy(update={"work": work()})
            except EngineError:
                await self._end_with_its_engine()
                raise

    async def check_health(self) -> None:
        """Ends the replica if the engine is dead. Serve's first check ends the start."""
        await self._end_with_its_engine()
        await self._engine.check_health()
        if not self._has_started:
            self._has_started = True
            await self._start.serves()

    async def _end_with_its_engine(self) -> None:
        """Ends this process at once if its engine is dead, so that callers see a replica that died.

        A replica that stayed would refuse every call, and so have the shortest queue and get the next ones,
        until Serve has found it unhealthy three times.
        """
        try:
            await self._engine.check_health()
        except EngineDied as e:
            _log.critical("this replica ends itself: %s", e)
            logging.shutdown()  # flushes
            os._exit(1)
        except EngineError:
            pass


class DecomposerDeployment:
    """Turns queries into plans. It calls its model by handle, or at the model's provider."""

    def __init__(self, config: RouterConfig) -> None:
        _log_with_serve(redactor_of(config))
        self._decomposer = Decomposer(build_pool(config.models, cluster_engine))

    async def decompose(
        self,
        messages: Messages,
        config: DecomposerConfig,
        limits: LimitsConfig,
        budget: Budget,
        context: TraceContext | None,
    ) -> StageReport[Decomposition]:
        return await report_of(
            lambda ledger: self._decomposer.decompose(messages, config, limits, ledger), budget, context
        )


class AllocatorDeployment:
    """Turns plans into allocations."""

    def __init__(self, config: RouterConfig) -> None:
        _log_with_serve(redactor_of(config))
        self._allocator = Allocator(build_pool(config.models, cluster_engine))

    async def allocate(
        self, task: AllocationTask, budget: Budget, context: TraceContext | None
    ) -> StageReport[AllocationResult]:
        return await report_of(lambda ledger: self._allocator.allocate(task, ledger), budget, context)


@serve.ingress()
class RouterDeployment:
    """The OpenAI endpoint. It is not ready until `user_config`, a `RoutingConfig`, has come.

    Raises: ConfigError if it would be open to the network without a key.
    """

    def __init__(
        self, config: RouterConfig, decomposer: DeploymentHandle, allocator: DeploymentHandle
    ) -> None:
        self._redact = redactor_of(config)
        _log_with_serve(self._redact)
        require_keys(_http_host(), config.server)
        config = with_deployed_engines(config)
        pool = build_pool(config.models, cluster_engine)
        decomposes, allocates = ServedDecomposer(decomposer, pool), ServedAllocator(allocator, pool)
        self._server, self._metrics = config.server, Metrics()
        replicas = Replicas()
        self._replica_metrics = ReplicaMetrics(self._metrics.render, replicas)
        self._metrics.watch_models(pool)
        replica = serve.get_replica_context()
        self._name = replica.replica_id.unique_id
        self._view, self._demand = ClusterView(config, replica.app_name), Demand()
        self._writing: asyncio.Task[None] | None = None
        self._admission = Admission(config.server.max_running, config.server.max_queued)
        self._feedback = FeedbackStore(config.server)
        sinks: list[Sink] = [self._metrics.observe, self._feedback.note]
        if config.server.trace_dir:
            sinks.append(TraceWriter.of(config.server, self._redact))

        self._telemetry = telemetry_sinks(config, self._redact)
        sinks += self._telemetry

        def make_pipeline(routing: RoutingConfig) -> Pipeline:
            return Pipeline(pool, routing, decomposes, allocates, sinks, self._view.replicas, self._demand)

        purses = shadow_purses(config.server)
        self._router = Router(config, make_pipeline, self._view.readiness, purses)
        self._siblings = SiblingEvents(self._router.events, self._name, replicas)
        view = self._view
        self._metrics.watch_cluster(view.unavailable, view.running, view.is_controller_absent)
        self._metrics.watch_trials(self._router)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = create_app(
            self._router,
            self._server,
            metrics=self._metrics,
            admission=self._admission,
            feedback=self._feedback,
            on_rated=self._router.rated,
            redact=self._redact,
            scrape=self._replica_metrics.every_page,
            others=self._siblings,
        )
        return _without_request_id(app)

    async def metrics_page(self) -> bytes:
        """The metrics of this replica, for the replica that is scraped.

        It is a coroutine, as Serve would run a function in a thread, where the view has no event loop.
        """
        return self._replica_metrics.page()

    async def caught_events(self, watcher: str, wants_latest: bool) -> Caught:
        """What has happened to queries here, for a replica at which somebody watches."""
        return self._siblings.catch(watcher, wants_latest=wants_latest)

    def check_file(self, gate: str | None, file: str, pool: tuple[str, ...]) -> None:
        """Raises: ConfigError if this replica cannot serve the fitted gate in `file`, or its `plan_file`."""
        if gate is None:
            read_fitted_plan(file)
        else:
            read_gate_file(gate, file, pool)

    async def finish(self) -> None:
        """Refuses new requests for good; returns when the others are answered. A local cluster ends so."""
        self._admission.close()
        await self._admission.idle()
        for sink in self._telemetry:
            await asyncio.to_thread(sink.close)

    async def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Takes a new routing for the queries to come; a wrong one is logged and the old one stays."""
        if self._writing is None:
            self._writing = asyncio.create_task(write_forecasts(self._name, self._forecasts))
        try:
            self._router.route_by(parse_routing(user_config))
        except ConfigError as e:
            if not self._router.models():
                raise
            _log.error("user_config of Router refused, the routing stays: %s", e)

    def _forecasts(self) -> dict[str, ModelDemand]:
        """The demand that plans will make on each local model's application."""
        forecast, app_of = self._demand.forecast(), self._view.app_of
        return total([{app_of[model]: demand} for model, demand in forecast.items() if model in app_of])


class AdapterLoadDeployment:
    """Empty, as an application must have a deployment; see `r2_serve.app.build_adapter_load`."""


async def load_on_every_replica(load: AdapterLoad) -> None:
    """Raises: ConfigError if a replica cannot load the adapter; EngineUnavailable if there is no replica."""
    handle = serve.get_deployment_handle(MODEL, load.app)
    await _on_every_replica(handle, load.app, load.timeout_s, "load_adapter", load.name, load.path)


async def check_file_on_every_replica(check: FittedCheck) -> None:
    """Raises: ConfigError if a replica cannot serve the file; EngineUnavailable if there is no replica."""
    handle = serve.get_deployment_handle(ROUTER, check.app)
    asked = (check.gate, check.file, check.pool)
    await _on_every_replica(handle, check.app, check.timeout_s, "check_file", *asked)


async def _on_every_replica(
    handle: DeploymentHandle, app: str, timeout_s: float, method: str, *args: object
) -> None:
    try:
        outcomes = await handle.broadcast(method, *args).results_async(
            timeout_s=timeout_s, return_exceptions=True
        )
    except Exception as e:
        raise EngineUnavailable(f"application {app!r} does not answer: {type(e).__name__}: {e}") from e
    failures = [unwrapped(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    if failures:
        some = f"{len(failures)} of {len(outcomes)} replicas of {app!r}"
        raise ConfigError(f"{some} cannot load it: {failures[0].message}")


async def unload_on_every_replica(app: str, name: str, timeout_s: float = 60.0) -> None:
    """Drops an adapter that no `user_config` names. Raises: EngineUnavailable if a replica is away."""
    handle = serve.get_deployment_handle(MODEL, app)
    try:
        await handle.broadcast("unload_adapter", name).results_async(timeout_s=timeout_s)
    except Exception as e:
        raise EngineUnavailable(f"application {app!r} does not answer: {type(e).__name__}: {e}") from e


def cluster_engine(model: ModelConfig) -> Engine:
    """Reaches local models by handle; runs the clients of hosted ones in this process."""
    if model.engine.kind == "served":
        return ServedEngine(model.engine.app)
    return make_engine(model.engine)


def _http_host() -> str:
    """The address that Serve's proxies listen on."""
    return str(_get_global_client().http_config.host)


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """Drops our `x-request-id` header, as Serve's proxy passes the same id in and appends it itself."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_rest(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_rest)

    return wrapped
