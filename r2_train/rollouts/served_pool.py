"""The pool as training uses it: it takes a plan and its models, and the router's own pipeline runs the plan.

All calls go through the cache of the run directory, whether the pool is reached in this process, by Serve
handles or over HTTP. Checkpoints in training can replace the decomposer and the allocator. A failed plan is a
`Rollout` with its error, never an exception; the reward decides what it means.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, cast

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
from r2_serve.errors import ConfigError, EngineRefused, OperatorFault, R2Error
from r2_serve.lab.evaluation.asker import AskFailed, InProcessAsker
from r2_serve.lab.evaluation.identity import weights_sha256
from r2_serve.serve_config import load
from r2_serve.types import (
    CallRecord,
    Completion,
    Delta,
    Engine,
    EngineCall,
    Message,
    Plan,
    Query,
    Sampling,
    Trace,
)
from r2_train.config import Module, PoolConfig
from r2_train.rollouts.call_cache import CallCache, cached_engines
from r2_train.rollouts.described_pool import DescribedPool, with_experiments, with_virtual
from r2_train.rollouts.throw_away import AdaptedEngine, AdapterHost, Borrowed, ServedHost, can_serve

Context: TypeAlias = Literal["full", "needed", "stated"]
REFUSALS = ("AnswerWithheld", "ContextOverflow", "EngineRefused")
"""Errors of calls that a model gives again for the same prompt. All others are outages."""
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
        """True if an outage left no answer, or an answer without the router's own plan and models. That tells
        nothing about either."""
        return self.failure is not None

    @property
    def failure(self) -> str | None:
        """What the outage was; None if there was none."""
        if self.error is not None:
            return None if self.is_refused else self.error
        for stage in ("decompose", "allocate"):
            errors = [call.error for call in self.calls if call.stage == stage]
            if errors and all(error is not None and error not in REFUSALS for error in errors):
                return f"{stage}: {errors[0]}"
        return None

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
class ServedPool(DescribedPool):
    """Runs queries on the pool. Use one per event loop."""

    engine_for: EngineFor
    cache: CallCache
    num_at_once: int = 256

    async def aclose(self) -> None:
        """Ends the engines that this pool has made. No call may follow."""
        if isinstance(self.engine_for, MadeOnce):
            await self.engine_for.aclose()

    @cached_property
    def _asker(self) -> InProcessAsker:
        return InProcessAsker(self.config, self.routing, self.engine_for)

    @cached_property
    def members(self) -> Pool:
        """Every model by name, for plain calls."""
        return build_pool(self.config.models, self.engine_for)

    def is_whole(self, plan: Plan) -> bool:
        """True if serving sends the query itself in place of the plan's one step, so that its text is not
        read."""
        return len(plan.subtasks) == 1 and plan.final_id is not None and self.takes_conversations

    def in_context(self, context: Context) -> ServedPool:
        """The same pool, where the steps of plans read `context` of the query."""
        return self.changed(context=context)

    def changed(self, **fields: object) -> ServedPool:
        """The same pool, whose virtual model has these fields."""
        virtual = self.virtual.model_copy(update=fields)
        models = {**self.routing.virtual_models, self.virtual_model: virtual}
        return replace(self, routing=self.routing.model_copy(update={"virtual_models": models}))

    def sampled(self, temperature: float, seed: int) -> ServedPool:
        """The same pool with a temperature in every call. Runs of a plan with given models are greedy
        otherwise."""

        def engine_for(model: ModelConfig) -> Engine:
            return _SampledEngine(self.engine_for(model), temperature, seed)

        return replace(self, engine_for=engine_for)

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
        decides. A plan of one step is run as serving does: the query goes to the model as it is.

        Raises: SpendLimitReached.
        """
        if plan is not None and self.is_whole(plan):
            plan = Plan.single(query)
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


def open_pool(
    config: PoolConfig,
    cache: CallCache,
    modules: Mapping[Module, Checkpoint] | None = None,
    shared: MadeOnce | None = None,
) -> ServedPool:
    """The pool that `config` describes; `modules` replace its decomposer and allocator. Close it after use.

    `shared` holds engines that outlive the pool (`open_engines`).
    Raises: ConfigError.
    """
    served = load(config.serve_config or EMBEDDED_CONFIG)
    router, routing = with_experiments(served, config)
    apps = served.model_apps
    adapters: dict[str, dict[str, Path]] = {}
    for module, checkpoint in (modules or {}).items():
        name = DescribedPool(router, routing, config.virtual_model).module_model(module).name
        path = checkpoint.path
        if path is not None and config.reach != "http" and can_serve(path, router.model(name), apps):
            checkpoint = Checkpoint(adapter=f"{module}-{weights_sha256(path)[:12]}")
            adapters.setdefault(name, {})[str(checkpoint.adapter)] = path
        router, routing = _with_module(router, routing, config, module, checkpoint)
    own = _engines(config, apps)

    def engine_for(model: ModelConfig) -> Engine:
        is_shared = shared is not None and model.engine.kind != "transformers"
        engine: Engine = Borrowed(shared(model)) if shared is not None and is_shared else own(model)
        if model.name not in adapters:
            return engine
        return AdaptedEngine(engine, _host_of(model, engine), adapters[model.name])

    cached = MadeOnce(cached_engines(engine_for, apps, cache))
    return ServedPool(router, routing, config.virtual_model, cached, cache, config.num_at_once)


def open_engines(config: PoolConfig) -> MadeOnce:
    """The engines of the pool's own models, for several pools one after the other. Close them after use."""
    return MadeOnce(_engines(config, load(config.serve_config or EMBEDDED_CONFIG).model_apps))


def _host_of(model: ModelConfig, engine: Engine) -> AdapterHost:
    """What loads the adapters of a model: its engine in this process, or the replicas that serve it."""
    local = engine.engine if isinstance(engine, Borrowed) else engine
    if hasattr(local, "load_adapter"):
        return cast("AdapterHost", local)
    assert model.engine.kind == "served"
    return ServedHost(model.engine.app)


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


@dataclass(frozen=True)
class MadeOnce:
    """Makes one engine per model, for any number of pools, and ends them together."""

    make: EngineFor
    made: dict[str, Engine] = field(default_factory=dict)

    def __call__(self, model: ModelConfig) -> Engine:
        if model.name not in self.made:
            self.made[model.name] = self.make(model)
        return self.made[model.name]

    async def aclose(self) -> None:
        while self.made:
            _, engine = self.made.popitem()
            if (close := getattr(engine, "aclose", None)) is not None:
                await close()


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


def _with_module(
    router: RouterConfig, routing: RoutingConfig, config: PoolConfig, module: Module, checkpoint: Checkpoint
) -> tuple[RouterConfig, RoutingConfig]:
    """Replaces a module by its checkpoint in this process, or by its adapter on the served model.

    The checkpoint is a model of its own: the other module and the pool may use the same served model.
    """
    virtual = routing.virtual_models[config.virtual_model]
    section = virtual.decomposer if module == "decomposer" else virtual.allocator
    if checkpoint.adapter is not None:
        named = section.model_copy(update={"adapter": checkpoint.adapter})
        return router, with_virtual(routing, config, {module: named})
    assert checkpoint.path is not None
    engine = TransformersEngineConfig(
        kind="transformers",
        path=str(checkpoint.path),
        device=config.module_device,
        dtype=config.module_dtype,
        max_batch_size=BATCH_SIZE,
    )
    served = router.model(section.model)
    trained = served.model_copy(update={"name": f"{served.name}/{module}", "engine": engine})
    named = section.model_copy(update={"model": trained.name, "adapter": None})
    models = (*router.models, trained)
    return router.model_copy(update={"models": models}), with_virtual(routing, config, {module: named})


def _is_refused(cause: BaseException | None) -> bool:
    chain = [cause, getattr(cause, "__cause__", None)]
    refused = [
        e for e in chain if isinstance(e, R2Error) and (isinstance(e, EngineRefused) or e.status == 400)
    ]
    return bool(refused) and not any(isinstance(e, OperatorFault) for e in refused)
