"""Builds the model of a deployment from its Serve config and the hardware file: every deployment, model and limit, once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from r2_serve.config import (
    HostedEngineConfig,
    LocalEngineConfig,
    ModelConfig,
    ScriptedEngineConfig,
    ServedEngineConfig,
    SpeedConfig,
    VirtualModelConfig,
)
from r2_serve.errors import ConfigError
from r2_serve.lab.simulate.autoscaler import Policy, Scaled, with_delays
from r2_serve.lab.simulate.calls import Target
from r2_serve.lab.simulate.clock import Clock
from r2_serve.lab.simulate.deployment import Deployment, DeploymentOptions
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.hosted import Hosted
from r2_serve.lab.simulate.machines import Machines
from r2_serve.lab.simulate.metrics_path import HandleReports
from r2_serve.lab.simulate.replicas import DelayReplica, EngineReplica, Replica, Room, StageReplica
from r2_serve.lab.simulate.router import PooledModel
from r2_serve.serve_config import ServeConfig

UNLIMITED = 1_000_000_000
MakeReplica = Callable[[Deployment], Replica]
MakePolicy = Callable[[str, Any], Policy]
"""From an application's name and its `AutoscalingConfig` to what decides for it, without Serve's delays."""

CODE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "Model": {"max_ongoing_requests": 64},
    "Decomposer": {"max_ongoing_requests": 256},
    "Allocator": {"max_ongoing_requests": 256},
    "Router": {},
}
"""What `r2_serve.app` sets where a config file says nothing."""


@dataclass
class System:
    """All that calls are made to."""

    deployments: dict[str, Deployment]
    """By "application/deployment"."""
    router: Deployment
    decomposer: Deployment
    allocator: Deployment
    models: dict[str, PooledModel]
    scaled: list[Scaled]
    machines: Machines
    virtual: VirtualModelConfig | None


def build_system(
    config: ServeConfig,
    hardware: Hardware,
    model: str,
    *,
    clock: Clock,
    draw: random.Random,
    make_policy: MakePolicy | None = None,
) -> System:
    """What answers requests for `model`. Raises: ConfigError where a speed is not known."""
    return _Builder(config, hardware, clock, draw, make_policy or own_policy).build(model)


def own_policy(app: str, autoscaling: Any) -> Policy:
    """The policy that the config names, Serve's own where it names none."""
    policy: Policy = autoscaling.policy.get_policy()
    return policy(**autoscaling.policy.policy_kwargs) if isinstance(policy, type) else policy


class _Builder:
    def __init__(
        self,
        config: ServeConfig,
        hardware: Hardware,
        clock: Clock,
        draw: random.Random,
        make_policy: MakePolicy,
    ) -> None:
        self._config, self._hardware, self._clock, self._draw, self._make_policy = (
            config,
            hardware,
            clock,
            draw,
            make_policy,
        )
        self._machines = Machines(clock, hardware.cluster)
        self._deployments: dict[str, Deployment] = {}
        self._scaled: list[Scaled] = []

    def build(self, model: str) -> System:
        config, server = self._config, self._config.router.server
        names, virtual = self._names_used(model), config.routing.virtual_models.get(model)
        models = {name: self._pooled(config.router.model(name)) for name in names}
        for app in config.model_apps:
            self._model_deployment(app, None)  # idle ones cost, too
        app = config.router_app_name
        room = Room(server.max_running, server.max_queued)
        return System(
            router=self._deploy(app, "Router", self._stage(room)),
            decomposer=self._deploy(app, "Decomposer", self._stage(Room())),
            allocator=self._deploy(app, "Allocator", self._stage(Room())),
            deployments=self._deployments,
            models=models,
            scaled=self._scaled,
            machines=self._machines,
            virtual=virtual,
        )

    def _names_used(self, model: str) -> list[str]:
        """Models that may be called for `model`, with their fallbacks."""
        virtual = self._config.routing.virtual_models.get(model)
        known = [card.name for card in self._config.router.models]
        if virtual is None and model not in known:
            names = [*self._config.routing.virtual_models, *known]
            raise ConfigError(f"the workload asks for model {model!r}; the config has {names}")
        first = (
            [model]
            if virtual is None
            else [*virtual.pool, virtual.decomposer.model, virtual.allocator.model, virtual.fallback_model]
        )
        reached = dict.fromkeys(first)
        for name in first:
            reached.update(dict.fromkeys(self._config.router.model(name).fallbacks))
        return list(reached)

    # -- models ---------------------------------------------------------------------------------------------------

    def _pooled(self, card: ModelConfig) -> PooledModel:
        return PooledModel(
            card,
            self._target(card),
            (card.name, *card.fallbacks),
            float(card.usd_per_mtok_in) / 1e6,
            float(card.usd_per_mtok_out) / 1e6,
        )

    def _target(self, card: ModelConfig) -> Target:
        engine, known = card.engine, self._hardware.models.get(card.name)
        if isinstance(engine, ServedEngineConfig):
            return self._model_deployment(engine.app, card)
        if isinstance(engine, HostedEngineConfig):
            if known is None or known.hosted is None:
                raise ConfigError(
                    f"model {card.name!r} is behind an API: --hardware must say how fast it is (models.{card.name}.hosted)"
                )
            return Hosted(
                self._clock, card.name, known.hosted, self._draw, self._config.routing.limits.cooldown
            )
        return self._in_router(card, engine)

    def _in_router(self, card: ModelConfig, engine: LocalEngineConfig) -> Deployment:
        """An engine in the router's own process, as dry runs have."""
        options = DeploymentOptions(
            card.name, UNLIMITED, -1, gpus=0.0, start_s=0.0, stop_s=0.0, hop_s=0.0, initial_replicas=1
        )
        return Deployment(self._clock, options, self._engine(card, engine), self._machines, self._draw)

    def _model_deployment(self, app: str, card: ModelConfig | None) -> Deployment:
        """The deployment of a model's application; `card` is None where no call is ever made to it."""
        name = f"{app}/Model"
        if name not in self._deployments:
            engine = self._config.model_apps[app].engine
            speed = self._speed(card, engine)
            self._deploy(
                app,
                "Model",
                self._engine(card, engine),
                start_s=speed.start_s if speed else 0.0,
                hop_s=self._hardware.overheads.hop_s,
            )
        return self._deployments[name]

    def _engine(self, card: ModelConfig | None, engine: LocalEngineConfig) -> MakeReplica:
        speed, clock = self._speed(card, engine), self._clock
        if speed is not None:
            return lambda deployment: EngineReplica(clock, speed, deployment.done)
        if card is not None and not isinstance(engine, ScriptedEngineConfig):
            raise ConfigError(
                f"model {card.name!r} runs on {engine.kind}: --hardware must say how fast it is (models.{card.name}.speed)"
            )
        delay_s = engine.delay_s if isinstance(engine, ScriptedEngineConfig) else 0.0
        return lambda deployment: DelayReplica(clock, delay_s, deployment.done)

    def _speed(self, card: ModelConfig | None, engine: LocalEngineConfig) -> SpeedConfig | None:
        known = self._hardware.models.get(card.name) if card else None
        if known is not None and known.speed is not None:
            return known.speed
        return engine.speed if isinstance(engine, ScriptedEngineConfig) else None

    # -- deployments ----------------------------------------------------------------------------------------------

    def _stage(self, room: Room) -> MakeReplica:
        clock = self._clock
        return lambda deployment: StageReplica(clock, room, deployment.refused)

    def _deploy(
        self, app: str, name: str, make_replica: MakeReplica, *, start_s: float = 0.0, hop_s: float = 0.0
    ) -> Deployment:
        options, overheads = self._options(app, name), self._hardware.overheads
        autoscaling = _autoscaling(app, options)
        initial = int(options.get("num_replicas") or 1) if autoscaling is None else _initial(autoscaling)
        deployment = Deployment(
            self._clock,
            DeploymentOptions(
                name=f"{app}/{name}",
                max_ongoing_requests=options["max_ongoing_requests"],
                max_queued_requests=options.get("max_queued_requests", -1),
                gpus=float((options.get("ray_actor_options") or {}).get("num_gpus", 0)),
                start_s=overheads.replica_start_s + start_s,
                stop_s=overheads.replica_stop_s,
                hop_s=hop_s,
                initial_replicas=initial,
            ),
            make_replica,
            self._machines,
            self._draw,
        )
        self._deployments[deployment.name] = deployment
        if autoscaling is not None:
            self._scale(app, deployment, autoscaling)
        return deployment

    def _scale(self, app: str, deployment: Deployment, autoscaling: Any) -> None:
        reports = HandleReports(
            self._clock,
            deployment,
            look_back_s=autoscaling.look_back_period_s,
            push_s=autoscaling.metrics_interval_s,
            aggregation=str(autoscaling.aggregation_function.value),
        )
        policy = with_delays(self._make_policy(app, autoscaling))
        self._scaled.append(Scaled(app, deployment, reports, autoscaling, policy))

    def _options(self, app: str, name: str) -> dict[str, Any]:
        """As `r2_serve.app` and the file set them together."""
        (section,) = (entry for entry in self._config.raw["applications"] if entry["name"] == app)
        if section.get("autoscaling_policy"):
            raise ConfigError(
                f"application {app!r} has an autoscaling_policy for all its deployments: simulate knows those of one"
            )
        given: dict[str, Any] = next(
            (entry for entry in section.get("deployments", []) if entry["name"] == name), {}
        )
        server = self._config.router.server
        defaults = {"max_ongoing_requests": server.max_running + server.max_queued + 64, **CODE_OPTIONS[name]}
        return {**defaults, **given}


def _autoscaling(app: str, options: Mapping[str, Any]) -> Any:
    """`AutoscalingConfig`, None where the number of replicas is fixed."""
    from ray.serve.config import AutoscalingConfig

    given = options.get("autoscaling_config")
    if options.get("num_replicas") == "auto":
        raise ConfigError(
            f"application {app!r}: write the autoscaling_config out in place of `num_replicas: auto`"
        )
    return None if given is None else AutoscalingConfig.model_validate(dict(given))


def _initial(autoscaling: Any) -> int:
    return int(
        autoscaling.min_replicas if autoscaling.initial_replicas is None else autoscaling.initial_replicas
    )
