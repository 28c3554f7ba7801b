"""The router and its models in this one process, without Ray: the same config file and ASGI application.

It serves configs whose models are hosted, on the numpy engine or scripted: such models need no cluster. It
lacks what a cluster gives (`LACKS`). Nothing here imports Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn

from r2_serve.calls.pool import EngineFor, Pool, build_pool
from r2_serve.cluster.adapter_slots import AdapterSlots
from r2_serve.config import ModelConfig, ModelTunables, RoutingConfig
from r2_serve.engines import make_engine, make_local_engine
from r2_serve.errors import ConfigError
from r2_serve.feedback import FeedbackStore
from r2_serve.http.admission import Admission
from r2_serve.http.api import create_app
from r2_serve.http.keys import require_keys
from r2_serve.http.metrics import Metrics
from r2_serve.http.redaction import redact_logs, redactor_of
from r2_serve.http.spend import shadow_purses
from r2_serve.otel import telemetry_sinks
from r2_serve.router.allocator import Allocator
from r2_serve.router.decomposer import Decomposer
from r2_serve.router.pipeline import Pipeline, Sink
from r2_serve.router.router import Router
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import MODEL
from r2_serve.traces import TraceWriter
from r2_serve.types import Engine

KINDS = ("numpy", "recorded", "scripted")
"""Engines of local models that a process without a cluster may run. A model on torch or vLLM would take the
router's memory, threads and event loop; it belongs into a replica."""
LACKS = (
    "no autoscaling, no replicas, no restart of a part that fails, no change of user_config while it runs, "
    "no publish; keys of Ray Serve in the file are not read (r2-serve validate checks them)"
)


def check_in_process(config: ServeConfig) -> None:
    """Raises: ConfigError with the names of the applications that need a cluster."""
    apart = [
        f"{name} ({server.engine.kind})"
        for name, server in config.model_apps.items()
        if server.engine.kind not in KINDS
    ]
    if apart:
        raise ConfigError(
            f"--in-process runs hosted, numpy, recorded and scripted models only; these applications need a "
            f"cluster: {', '.join(apart)}. Leave --in-process out"
        )


async def serve(config: ServeConfig, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Serves `config` until SIGINT or SIGTERM; requests at work are answered, a second signal cuts them off.

    Raises: ConfigError for a config that needs a cluster, a missing key, or a model that cannot be loaded.
    """
    check_in_process(config)
    require_keys(host, config.router.server)
    redact = redactor_of(config.router)
    redact_logs(redact)
    _log_to_stderr(config)
    engines = await _local_engines(config)
    admission = Admission(config.router.server.max_running, config.router.server.max_queued)
    metrics, feedback = Metrics(), FeedbackStore(config.router.server)
    sinks: list[Sink] = [metrics.observe, feedback.note]
    if config.router.server.trace_dir:
        sinks.append(TraceWriter.of(config.router.server, redact))
    telemetry = telemetry_sinks(config.router, redact)
    sinks += telemetry
    pool = build_pool(config.router.models, _engine_for(engines))
    metrics.watch_models(pool)
    router = _router(config, pool, sinks)
    metrics.watch_trials(router)
    app = create_app(
        router,
        config.router.server,
        metrics=metrics,
        admission=admission,
        feedback=feedback,
        on_rated=router.rated,
        redact=redact,
    )
    options = uvicorn.Config(
        app,
        host,
        port,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=math.ceil(config.routing.limits.deadline_s),
    )
    await _Server(options, on_ready).serve()
    for sink in telemetry:
        await asyncio.to_thread(sink.close)


def _router(config: ServeConfig, pool: Pool, sinks: Sequence[Sink]) -> Router:
    local = {model.name for model in config.router.models if model.engine.kind == "served"}

    def replicas(model: str) -> float | None:
        return 1.0 if model in local else None

    def make_pipeline(routing: RoutingConfig) -> Pipeline:
        return Pipeline(pool, routing, Decomposer(pool), Allocator(pool), sinks, replicas)

    router = Router(config.router, make_pipeline, shadow_purse=shadow_purses(config.router.server))
    router.route_by(config.routing)
    return router


async def _local_engines(config: ServeConfig) -> dict[str, Engine]:
    """The engine of each local model with its adapters, by application name."""
    engines: dict[str, Engine] = {}
    for app in config.raw["applications"]:
        if (server := config.model_apps.get(app["name"])) is None:
            continue
        engine = engines[app["name"]] = make_local_engine(server.engine)
        for entry in app.get("deployments", ()):
            if entry.get("name") == MODEL and entry.get("user_config"):
                tunables = ModelTunables.model_validate(entry["user_config"])
                await AdapterSlots(engine).change_to(tunables.adapters)
    return engines


def _engine_for(local: dict[str, Engine]) -> EngineFor:
    def engine_for(model: ModelConfig) -> Engine:
        return local[model.engine.app] if model.engine.kind == "served" else make_engine(model.engine)

    return engine_for


def _log_to_stderr(config: ServeConfig) -> None:
    """Our log lines, at the level of `logging_config`."""
    options = config.raw.get("logging_config") or {}
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("r2_serve").setLevel(str(options.get("log_level", "INFO")).upper())


class _Server(uvicorn.Server):
    """Says when it listens, and returns after a signal instead of repeating it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._stopping = on_ready, asyncio.Event()

    async def main_loop(self) -> None:
        """Keeps the date header, once a second; uvicorn's own loop wakes up ten times as often."""
        self._on_ready()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends in order after the first signal, at once after the second."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
