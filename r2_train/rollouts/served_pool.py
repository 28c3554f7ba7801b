"""The pool as training uses it: it takes a plan and its models, and the router's own pipeline runs the plan.

All calls go through the cache of the run directory, whether the pool is reached in this process, by Serve
handles or over HTTP. Checkpoints in training can replace the decomposer and the allocator. A failed plan is a
`Rollout` with its error, never an exception; the reward decides what it means.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from r2_serve import EMBEDDED_CONFIG
from r2_serve.calls.pool import EngineFor, Pool, build_pool, in_process_engines
from r2_serve.config import (
    HostedEngineConfig,
    ModelConfig,
    ModelServerConfig,
    RouterConfig,
    RoutingConfig,
    TransformersEngineConfig,
)
from r2_serve.engines import make_engine
from r2_serve.errors import ConfigError, EngineRefused, R2Error
from r2_serve.lab.evaluation.asker import AskFailed, InProcessAsker
from r2_serve.serve_config import ServeConfig, load
from r2_serve.types import (
    CallRecord,
    Completion,
    Delta,
    Engine,
    EngineCall,
    Message,
    ModelCard,
    Plan,
    Query,
    Sampling,
    Trace,
)
from r2_train.config import Module, PoolConfig
from r2_train.rollouts.call_cache import CallCache, cached_engines

BATCH_SIZE = 512
"""Number of calls that an engine in this process decodes together."""


@dataclass(frozen=True)
class Rollout:
    """One query that was run on the pool. `error` is None if it was answered."""

    answer: str | None
    trace: Trace | None
    calls: tuple[CallRecord, ...]
    error: str | None = None
    is_refused: bool = False
    """True if the query failed because of the plan (a limit, an unknown word), so that it would fail again.
    An outage is not a refusal."""

    @property
    def has_failed(self) -> bool:
        """True if an outage left no answer. That tells nothing about the plan."""
        return self.error is not None and not self.is_refused

    @property
    def plan(self) -> Plan | None:
        return None if self.trace is None else self.trace.plan

    @property
    def cost_usd(self) -> Decimal:
        return sum((call.cost_usd for call in self.calls), Decimal(0))

    @property
    def worker_cost_usd(self) -> Decimal:
        return sum((call.cost_usd for call in self.calls if call.stage == "execute"), Decimal(0))

    @property
    def critical_path_tokens(self) -> int:
        """Completion tokens on the longest chain of steps. They cannot be decoded at the same time."""
        if self.trace is None or self.trace.plan is None:
            return 0
        tokens = {result.id: result.usage.completion_tokens for result in self.trace.results}
        ends: dict[int, int] = {}
        for subtask in self.trace.plan.subtasks:
            before = max((ends[d] for d in subtask.depends_on), default=0)
            ends[subtask.id] = before + tokens.get(subtask.id, 0)
        return max(ends.values())


@dataclass(frozen=True)
class Checkpoint:
    """A module in training: a checkpoint that this process runs, or an adapter of the served model."""

    path: Path | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class ServedPool:
    """Runs queries on the pool. Use one per event loop."""

    config: RouterConfig
    routing: RoutingConfig
    virtual_model: str
    engine_for: EngineFor
    cache: CallCache
    num_at_once: int = 256

    @cached_property
    def _asker(self) -> InProcessAsker:
        return InProcessAsker(self.config, self.routing, self.engine_for)

    @cached_property
    def members(self) -> Pool:
        """Every model by name, for plain calls."""
        return build_pool(self.config.models, self.engine_for)

    def sampled(self, temperature: float, seed: int) -> ServedPool:
        """The same pool with a temperature in every call. Runs of a plan with given models are greedy
        otherwise."""

        def engine_for(model: ModelConfig) -> Engine:
            return _SampledEngine(self.engine_for(model), temperature, seed)

        return replace(self, engine_for=engine_for)

    @property
    def pool(self) -> tuple[str, ...]:
        """Names of the pool's models, cheapest first."""
        return self.routing.virtual_models[self.virtual_model].pool

    @property
    def cards(self) -> list[ModelCard]:
        """Cards of the pool's models, in the order of `pool`."""
        return [self.config.model(name) for name in self.pool]

    @property
    def largest(self) -> str:
        return self.routing.virtual_models[self.virtual_model].fallback_model

    def module_model(self, module: Module) -> ModelConfig:
        virtual = self.routing.virtual_models[self.virtual_model]
        return self.config.model((virtual.decomposer if module == "decomposer" else virtual.allocator).model)

    async def run(
        self,
        request_id: str,
        query: str,
        *,
        plan: Plan | None = None,
        models: Sequence[str] = (),
        policy: str | None = None,
    ) -> Rollout:
        """Runs `query`. Without `plan` the decomposer makes it; without `models` the policy or the allocator
        decides.

        Raises: SpendLimitReached.
        """
        asked = Query(
            request_id=request_id,
            model=self.virtual_model,
            messages=(Message(role="user", content=query),),
            plan=plan,
            pinned=dict(enumerate(models, 1)),
            policy=policy,
        )
        try:
            reply = await self._asker.ask(asked)
        except AskFailed as e:
            self.cache.check_spend()
            return Rollout(None, None, e.calls, e.message, is_refused=_is_refused(e.__cause__))
        self.cache.check_spend()
        return Rollout(reply.text, reply.trace, reply.trace.calls)

    async def ask(
        self, model: str, messages: Sequence[Message], sampling: Sampling, adapter: str | None = None
    ) -> Completion:
        """One plain call. Raises: EngineError, SpendLimitReached."""
        member = self.members[model]
        timeout_s = member.config.timeout_s
        call = EngineCall(messages=tuple(messages), sampling=sampling, adapter=adapter, timeout_s=timeout_s)
        return await member.engine.generate(call)


def described(config: PoolConfig) -> tuple[RouterConfig, RoutingConfig]:
    """The models and the routing that `config` describes; no engine is made. Raises: ConfigError."""
    return _with_experiments(load(config.serve_config or EMBEDDED_CONFIG), config)


def open_pool(
    config: PoolConfig, cache: CallCache, modules: Mapping[Module, Checkpoint] | None = None
) -> ServedPool:
    """The pool that `config` describes; `modules` replace its decomposer and allocator. Raises:
    ConfigError."""
    served = load(config.serve_config or EMBEDDED_CONFIG)
    router, routing = _with_experiments(served, config)
    apps = served.model_apps
    for module, checkpoint in (modules or {}).items():
        router, routing = _with_module(router, routing, config, module, checkpoint)
    engine_for = _made_once(cached_engines(_engines(config, apps), apps, cache))
    return ServedPool(router, routing, config.virtual_model, engine_for, cache, config.num_at_once)


@dataclass(frozen=True)
class _SampledEngine:
    """An engine that sets the temperature and the seed of every call."""

    engine: Engine
    temperature: float
    seed: int

    async def generate(self, call: EngineCall) -> Completion:
        return await self.engine.generate(self._at_temperature(call))

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        return self.engine.stream(self._at_temperature(call))

    def _at_temperature(self, call: EngineCall) -> EngineCall:
        sampling = call.sampling.model_copy(update={"temperature": self.temperature, "seed": self.seed})
        return call.model_copy(update={"sampling": sampling})


def _made_once(engine_for: EngineFor) -> EngineFor:
    """Makes one engine per model, for any number of pools."""
    made: dict[str, Engine] = {}

    def engine(model: ModelConfig) -> Engine:
        if model.name not in made:
            made[model.name] = engine_for(model)
        return made[model.name]

    return engine


def _engines(config: PoolConfig, apps: Mapping[str, ModelServerConfig]) -> EngineFor:
    if config.reach == "in-process":
        return in_process_engines({name: _in_large_batches(app) for name, app in apps.items()})
    if config.reach == "serve":
        from r2_serve.cluster.deployments import cluster_engine

        return cluster_engine
    return _engines_of_endpoint(config)


def _engines_of_endpoint(config: PoolConfig) -> EngineFor:
    """Served and hosted models by name at a running endpoint. A checkpoint in training runs in this
    process."""
    url, key = config.url, config.api_key_env
    assert url is not None  # PoolConfig checks it
    if key is not None and key not in os.environ:
        raise ConfigError(f"pool.api_key_env names {key}, which is not set")

    def by_name(model: ModelConfig) -> Engine:
        if model.engine.kind not in ("served", "openai", "azure"):
            return make_engine(model.engine)
        if model.codec == "compact":
            raise ConfigError(
                f"{model.name!r} speaks the compact dialect, which an endpoint renders and reads itself: "
                "train on it with `reach: in-process` or `serve`"
            )
        return make_engine(HostedEngineConfig(kind="openai", model=model.name, base_url=url, api_key_env=key))

    return by_name


def _in_large_batches(app: ModelServerConfig) -> ModelServerConfig:
    if app.engine.kind not in ("numpy", "transformers"):
        return app
    return app.model_copy(update={"engine": app.engine.model_copy(update={"max_batch_size": BATCH_SIZE})})


def _with_experiments(served: ServeConfig, config: PoolConfig) -> tuple[RouterConfig, RoutingConfig]:
    """Applies `prices`, `without` and `call_timeout_s`; training splits every query.

    Raises: ConfigError for unknown names.
    """
    router, routing = served.router, served.routing
    if config.virtual_model not in routing.virtual_models:
        raise ConfigError(
            f"pool.virtual_model  {config.virtual_model!r}: the config has {[*routing.virtual_models]}"
        )
    virtual = routing.virtual_models[config.virtual_model]
    known = [model.name for model in router.models]
    unknown = [name for name in (*config.prices, *config.without) if name not in known]
    if unknown:
        raise ConfigError(f"pool.prices or pool.without names {unknown}; the models are {known}")
    models = tuple(_priced(model, config) for model in router.models)
    kept = tuple(name for name in virtual.pool if name not in config.without)
    default = virtual.default_model if virtual.default_model in kept else None
    routing = _with_virtual(routing, config, {"pool": kept, "default_model": default, "plan": "always"})
    if config.call_timeout_s is not None:
        limits = routing.limits.model_copy(update={"deadline_s": config.call_timeout_s})
        routing = routing.model_copy(update={"limits": limits})
    return router.model_copy(update={"models": models}), routing


def _with_virtual(routing: RoutingConfig, config: PoolConfig, update: dict[str, object]) -> RoutingConfig:
    virtual = routing.virtual_models[config.virtual_model].model_copy(update=update)
    models = {**routing.virtual_models, config.virtual_model: virtual}
    return routing.model_copy(update={"virtual_models": models})


def _priced(model: ModelConfig, config: PoolConfig) -> ModelConfig:
    if model.name not in config.prices:
        return model
    price = config.prices[model.name]
    return model.model_copy(update={"usd_per_mtok_in": price, "usd_per_mtok_out": price})


def _with_module(
    router: RouterConfig, routing: RoutingConfig, config: PoolConfig, module: Module, checkpoint: Checkpoint
) -> tuple[RouterConfig, RoutingConfig]:
    """Replaces a module by its checkpoint in this process, or by its adapter on the served model."""
    virtual = routing.virtual_models[config.virtual_model]
    section = virtual.decomposer if module == "decomposer" else virtual.allocator
    if checkpoint.adapter is not None:
        named = section.model_copy(update={"adapter": checkpoint.adapter})
        return router, _with_virtual(routing, config, {module: named})
    assert checkpoint.path is not None
    engine = TransformersEngineConfig(
        kind="transformers",
        path=str(checkpoint.path),
        device=config.module_device,
        dtype=config.module_dtype,
        max_batch_size=BATCH_SIZE,
    )
    models = tuple(
        model.model_copy(update={"engine": engine}) if model.name == section.model else model
        for model in router.models
    )
    return router.model_copy(update={"models": models}), routing


def _is_refused(cause: BaseException | None) -> bool:
    chain = [cause, getattr(cause, "__cause__", None)]
    return any(isinstance(e, R2Error) and (isinstance(e, EngineRefused) or e.status == 400) for e in chain)
