"""The model of a deployment, built from its Serve config and the hardware file."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2_serve.config import (
    HostedEngineConfig,
    LimitsConfig,
    LocalEngineConfig,
    ModelConfig,
    ScriptedEngineConfig,
    ServedEngineConfig,
    SpeedConfig,
    VirtualModelConfig,
)
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.autoscaler import ScaledDeployment, ScalingPolicy, with_delays
from r2_serve.lab.simulate.calls import CallTarget, Replica
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment, DeploymentOptions
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.hosted import HostedModel
from r2_serve.lab.simulate.machines import Machines, Need
from r2_serve.lab.simulate.metrics_path import HandleReports
from r2_serve.lab.simulate.replicas import DelayReplica, EngineReplica, Room, StageReplica
from r2_serve.lab.workload.failures import NodeDies, ReplicaDies
from r2_serve.router.able import replacing
from r2_serve.scaling.cold_starts import read_starts
from r2_serve.serve_config import ServeConfig
from r2_serve.serve_config.applications import ALLOCATOR, DECOMPOSER, MODEL, ROUTER, gpu_bundles
from r2_serve.serve_config.defaults import default_options
from r2_serve.serve_config.document import suggestion

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingConfig

UNLIMITED = 1_000_000_000
StartTime = Callable[[], float]
MakeReplica = Callable[[Deployment], Replica]
MakePolicy = Callable[[str, "AutoscalingConfig"], ScalingPolicy]
"""Makes the policy of an application, without Serve's delays, from its name and its `AutoscalingConfig`."""


@dataclass(frozen=True)
class PooledModel:
    """A model of the pool."""

    config: ModelConfig
    target: CallTarget
    chain: tuple[str, ...]
    """The model's name and its fallbacks."""
    stand_ins: tuple[str, ...]
    """Other models of the pool that take a step after those."""
    usd_per_token_in: float
    usd_per_token_out: float

    @property
    def price(self) -> tuple[float, float]:
        return self.usd_per_token_out, self.usd_per_token_in


@dataclass
class System:
    """Everything that calls are made to, and the limits on them."""

    router: Deployment
    decomposer: Deployment
    allocator: Deployment
    deployments: dict[str, Deployment]
    """Every deployment by "application/deployment"."""
    models: dict[str, PooledModel]
    scaled: list[ScaledDeployment]
    machines: Machines
    virtual: VirtualModelConfig | None
    """None if queries go straight to one model."""
    limits: LimitsConfig
    stage_hop_s: float = 0.0
    """Time between the router and another stage, spent on the way of the calls that the stage makes."""

    @cached_property
    def shortest_timeout_s(self) -> float:
        stages = (self.virtual.decomposer.timeout_s, self.virtual.allocator.timeout_s) if self.virtual else ()
        calls = (model.config.timeout_s for model in self.models.values())
        return min(self.limits.deadline_s, *stages, *calls)

    def with_room(self, chosen: str, prompt_tokens: float, reply_tokens: float) -> str:
        """The model that gets a subtask, as in `router.spill`, which sees new replicas a second later."""
        if self.virtual is None or self.virtual.spill is None:
            return chosen
        calls_each, price = self.virtual.spill.calls_per_replica, self.models[chosen].price
        if self._has_room(chosen, calls_each):
            return chosen
        others = (name for name in self.virtual.pool if name != chosen)
        for name in sorted(others, key=lambda name: self.models[name].price):
            model = self.models[name]
            fits = prompt_tokens + reply_tokens <= model.config.context_tokens
            if model.price >= price and fits and self._has_room(name, calls_each):
                return name
        return chosen

    def _has_room(self, name: str, calls_each: float) -> bool:
        target = self.models[name].target
        if not isinstance(target, Deployment):
            return True
        return target.num_at_work + target.num_queued < calls_each * len(target.running)


def own_policy(app: str, autoscaling: AutoscalingConfig) -> ScalingPolicy:
    """The policy that the config names; Serve's own if it names none."""
    policy: Any = autoscaling.policy.get_policy()
    made: ScalingPolicy = policy(**autoscaling.policy.policy_kwargs) if isinstance(policy, type) else policy
    return made


def check_failures(system: System, failures: Sequence[ReplicaDies | NodeDies]) -> None:
    """Raises: ConfigError for a failure that cannot be simulated."""
    for failure in failures:
        if isinstance(failure, NodeDies):
            if not system.machines.has_nodes:
                raise ConfigError("failures: a node dies only where --hardware has some (cluster.nodes)")
            continue
        deployment = system.deployments.get(f"{failure.app}/{MODEL}")
        if deployment is None:
            known = [name.removesuffix(f"/{MODEL}") for name in system.deployments if name.endswith(MODEL)]
            raise ConfigError(f"failures: no application {failure.app!r}{suggestion(failure.app, known)}")
        if not deployment.options.can_die:
            raise ConfigError(f"failures: {failure.app!r} has no speed, so its calls cannot be cut short")


@dataclass
class SystemBuilder:
    """Builds the system that answers requests for one model."""

    config: ServeConfig
    hardware: Hardware
    clock: Clock
    draw: random.Random
    make_policy: MakePolicy = own_policy
    _deployments: dict[str, Deployment] = field(default_factory=dict, init=False)
    _scaled: list[ScaledDeployment] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._machines = Machines(self.clock, self.hardware.cluster)

    def build(self, model: str) -> System:
        """The system for `model`. Raises: ConfigError if the model or a speed is not known."""
        config, server = self.config, self.config.router.server
        virtual = config.routing.virtual_models.get(model)
        models = {name: self._pooled(config.router.model(name), virtual) for name in self._names_used(model)}
        for app in config.model_apps:
            self._model_deployment(app, None)  # idle ones cost, too
        app = config.router_app_name
        return System(
            router=self._deploy(app, ROUTER, self._stage(Room(server.max_running, server.max_queued))),
            decomposer=self._deploy(app, DECOMPOSER, self._stage(Room())),
            allocator=self._deploy(app, ALLOCATOR, self._stage(Room())),
            deployments=self._deployments,
            models=models,
            scaled=self._scaled,
            machines=self._machines,
            virtual=virtual,
            limits=config.routing.limits,
            stage_hop_s=self.hardware.overheads.hop_s,
        )

    def _names_used(self, model: str) -> list[str]:
        """Models that may be called for `model`, with their fallbacks."""
        virtual_models, cards = self.config.routing.virtual_models, self.config.router.models
        if model not in virtual_models and model not in [card.name for card in cards]:
            names = [*virtual_models, *(card.name for card in cards)]
            raise ConfigError(f"the workload asks for model {model!r}; the config has {names}")
        first = [model]
        if (virtual := virtual_models.get(model)) is not None:
            first = [*virtual.pool, virtual.decomposer.model, virtual.allocator.model, virtual.fallback_model]
        fallbacks = (
            name for known in dict.fromkeys(first) for name in self.config.router.model(known).fallbacks
        )
        return list(dict.fromkeys([*first, *fallbacks]))

    # -- models ------------------------------------------------------------------------------------------

    def _pooled(self, card: ModelConfig, virtual: VirtualModelConfig | None) -> PooledModel:
        usd_in, usd_out = float(card.usd_per_mtok_in) / 1e6, float(card.usd_per_mtok_out) / 1e6
        chain, others = (card.name, *card.fallbacks), []
        if virtual is not None and virtual.fallbacks == "pool" and card.name in virtual.pool:
            others = replacing(card, map(self.config.router.model, virtual.pool))
        stand_ins = tuple(name for name in others if name not in chain)
        return PooledModel(card, self._target(card), chain, stand_ins, usd_in, usd_out)

    def _target(self, card: ModelConfig) -> CallTarget:
        engine, known = card.engine, self.hardware.models.get(card.name)
        if isinstance(engine, ServedEngineConfig):
            return self._model_deployment(engine.app, card)
        if not isinstance(engine, HostedEngineConfig):
            return self._in_router(card, engine)
        if known is None or known.hosted is None:
            raise ConfigError(
                f"model {card.name!r} is behind an API: --hardware must say how fast it is "
                f"(models.{card.name}.hosted)"
            )
        cooldown = self.config.routing.limits.cooldown
        return HostedModel(self.clock, card.name, known.hosted, self.draw, cooldown)

    def _in_router(self, card: ModelConfig, engine: LocalEngineConfig) -> Deployment:
        """The deployment of an engine in the router's own process, as dry runs have."""
        options = DeploymentOptions(card.name, UNLIMITED)
        return Deployment(self.clock, options, self._engine(card, engine), self._machines, self.draw)

    def _model_deployment(self, app: str, card: ModelConfig | None) -> Deployment:
        """The deployment of a model's application; `card` is None if it is never called."""
        name = f"{app}/Model"
        if name not in self._deployments:
            engine = self.config.model_apps[app].engine
            speed = self._speed(card, engine)
            start_s, hop_s = self._start_s(card, app, speed), self.hardware.overheads.hop_s
            make = self._engine(card, engine)
            self._deploy(app, MODEL, make, start_s=start_s, hop_s=hop_s, can_die=speed is not None)
        return self._deployments[name]

    def _start_s(self, card: ModelConfig | None, app: str, speed: SpeedConfig | None) -> StartTime:
        """The time of each start on a node that is up: measured where there is a log, else the constant."""
        known = self.hardware.models.get(card.name) if card else None
        constant_s = self.hardware.overheads.replica_start_s + (speed.start_s if speed else 0.0)
        if known is None or known.cold_starts is None:
            return lambda: constant_s
        times = [start.on_node_s for start in read_starts(Path(known.cold_starts)) if start.app == app]
        if not times:
            raise ConfigError(f"{known.cold_starts} has no cold start of application {app!r}")
        return lambda: self.draw.choice(times)

    def _engine(self, card: ModelConfig | None, engine: LocalEngineConfig) -> MakeReplica:
        speed, clock = self._speed(card, engine), self.clock
        if speed is not None:
            return lambda deployment: EngineReplica(clock, speed, deployment.done)
        if card is not None and not isinstance(engine, ScriptedEngineConfig):
            raise ConfigError(
                f"model {card.name!r} runs on {engine.kind}: --hardware must say how fast it is "
                f"(models.{card.name}.speed)"
            )
        delay_s = engine.delay_s if isinstance(engine, ScriptedEngineConfig) else 0.0
        return lambda deployment: DelayReplica(clock, delay_s, deployment.done)

    def _speed(self, card: ModelConfig | None, engine: LocalEngineConfig) -> SpeedConfig | None:
        known = self.hardware.models.get(card.name) if card else None
        if known is not None and known.speed is not None:
            return known.speed
        return engine.speed if isinstance(engine, ScriptedEngineConfig) else None

    # -- deployments -------------------------------------------------------------------------------------

    def _stage(self, room: Room) -> MakeReplica:
        return lambda deployment: StageReplica(room, deployment.refused)

    def _deploy(
        self,
        app: str,
        name: str,
        make_replica: MakeReplica,
        *,
        start_s: StartTime | None = None,
        hop_s: float = 0.0,
        can_die: bool = False,
    ) -> Deployment:
        given, overheads = self._options(app, name), self.hardware.overheads
        autoscaling = _autoscaling(app, given)
        options = DeploymentOptions(
            name=f"{app}/{name}",
            max_ongoing_requests=given["max_ongoing_requests"],
            max_queued_requests=given.get("max_queued_requests", -1),
            need=self._need(app, name, given),
            can_die=can_die,
            start_s=start_s or (lambda: overheads.replica_start_s),
            stop_s=overheads.replica_stop_s,
            hop_s=hop_s,
            initial_replicas=int(given.get("num_replicas") or 1)
            if autoscaling is None
            else _initial(autoscaling),
        )
        deployment = Deployment(self.clock, options, make_replica, self._machines, self.draw)
        self._deployments[deployment.name] = deployment
        if autoscaling is not None:
            reports = HandleReports.of(self.clock, deployment, autoscaling)
            policy = with_delays(self.make_policy(app, autoscaling))
            self._scaled.append(ScaledDeployment(app, deployment, reports, autoscaling, policy))
        return deployment

    def _need(self, app: str, name: str, options: Mapping[str, Any]) -> Need:
        strategy = options.get("placement_group_strategy", "PACK")
        need = Need(gpu_bundles(options), is_on_one_node=strategy == "STRICT_PACK")
        if strategy not in ("PACK", "STRICT_PACK"):
            raise ConfigError(
                f"{app}/{name}: simulate knows no placement_group_strategy {strategy}, only PACK"
            )
        if not self._machines.could_hold(need):
            raise ConfigError(
                f"a replica of {app}/{name} asks for {need} on one node, more than a node of --hardware "
                "has (cluster): it would wait for ever"
            )
        return need

    def _options(self, app: str, name: str) -> dict[str, Any]:
        """The options that `r2_serve.app` and the file set together."""
        (section,) = (entry for entry in self.config.raw["applications"] if entry["name"] == app)
        if section.get("autoscaling_policy"):
            raise ConfigError(
                f"application {app!r} has an autoscaling_policy for all its deployments: simulate knows only "
                "policies of a single deployment"
            )
        given: dict[str, Any] = next(
            (entry for entry in section.get("deployments", []) if entry["name"] == name), {}
        )
        return {**default_options(self.config.model_apps.get(app, self.config.router))[name], **given}


def _autoscaling(app: str, options: Mapping[str, Any]) -> AutoscalingConfig | None:
    """The autoscaling of a deployment; None if its number of replicas is fixed."""
    from ray.serve.config import AutoscalingConfig

    given = options.get("autoscaling_config")
    if options.get("num_replicas") == "auto":
        raise ConfigError(
            f"application {app!r}: write out an autoscaling_config in place of `num_replicas: auto`"
        )
    return None if given is None else AutoscalingConfig.model_validate(dict(given))


def _initial(autoscaling: AutoscalingConfig) -> int:
    initial = autoscaling.initial_replicas
    return int(autoscaling.min_replicas if initial is None else initial)
