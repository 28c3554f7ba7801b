"""What an operator may set: every field with its meaning, its unit and the reason of its default.

Ray Serve restarts an application when its `args` change, but not when `user_config` does. So there are two
halves:

- `RouterConfig`, the `args` of the router application: the pool's models with prices and engines, the server.
- `RoutingConfig`, the `user_config` of its `Router` deployment: virtual models, adapters, limits.

Each local model is an application of its own, whose `args` are a `ModelServerConfig`. Unknown keys are
errors. Secrets are named by environment variable, never written here. `r2_serve.serve_config` reads the YAML
file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from r2_serve.config.abilities import TEXT_ALONE, abilities_of, can_say
from r2_serve.config.adapters import AdapterLoad, ModelTunables
from r2_serve.config.engines import (
    SAFE_LOAD_FORMATS,
    Config,
    EmbeddingsEngineConfig,
    EngineConfig,
    EnvName,
    HostedEngineConfig,
    LocalEngineConfig,
    NumpyEngineConfig,
    RecordedEngineConfig,
    ScriptedEngineConfig,
    ServedEngineConfig,
    SpeedConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
)
from r2_serve.config.gates import FittedCheck, GateConfig
from r2_serve.config.limits import CooldownConfig, LimitsConfig
from r2_serve.config.prices import with_gpu_prices, with_listed_prices, with_table_date
from r2_serve.config.prompts import PromptExample, Prompts
from r2_serve.config.providers import with_engine_defaults
from r2_serve.config.rollout import MarginsConfig, RolloutConfig
from r2_serve.config.routing import RoutingConfig, VirtualModelConfig
from r2_serve.config.scaling import PlanAheadConfig, SpillConfig
from r2_serve.config.server import (
    FEEDBACK_FILE,
    EventsConfig,
    FeedbackConfig,
    OtelConfig,
    ResponsesConfig,
    ServerConfig,
)
from r2_serve.config.stages import AllocatorConfig, DecomposerConfig, ScoreWeights
from r2_serve.types import Ability, ModelCard, Need

__all__ = [
    "AdapterLoad",
    "AllocatorConfig",
    "Config",
    "CooldownConfig",
    "DecomposerConfig",
    "EmbeddingsEngineConfig",
    "EngineConfig",
    "EnvName",
    "EventsConfig",
    "FEEDBACK_FILE",
    "FeedbackConfig",
    "FittedCheck",
    "GateConfig",
    "HostedEngineConfig",
    "LimitsConfig",
    "LocalEngineConfig",
    "MarginsConfig",
    "ModelTunables",
    "NumpyEngineConfig",
    "OtelConfig",
    "PlanAheadConfig",
    "PromptExample",
    "Prompts",
    "RecordedEngineConfig",
    "ResponsesConfig",
    "RolloutConfig",
    "RoutingConfig",
    "SAFE_LOAD_FORMATS",
    "ScoreWeights",
    "ScriptedEngineConfig",
    "ServedEngineConfig",
    "ServerConfig",
    "SpeedConfig",
    "SpillConfig",
    "TransformersEngineConfig",
    "VirtualModelConfig",
    "VllmEngineConfig",
]


MAX_CHARS_PER_TOKEN = 8
"""Characters that a token of a long prompt has at most, on average."""
ROUTED_QUERY_CHARS = 200_000
"""Characters that every context is taken to hold, and most of a step with answers filled in."""


class ModelConfig(ModelCard):
    """A pool model: its card, and how to reach it.

    A hosted model without written prices has those of the table in `r2_serve.config.prices`, and one whose
    engine names a provider has the address of `r2_serve.config.providers`.
    """

    engine: EngineConfig
    """How the model is reached. Without it, application `m-NAME` of the same file serves the model."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Tokens that a busy GPU writes in a second with this model. It gives the prices of a local model that
    has none written: GPU time at `gpu_usd_per_hour`, and a tenth of it for prompts, which are read at about
    ten times the rate."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one call may take, without the time in which the client reads a stream."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest reply asked for if the request names none. None: hosted models are sent no limit (an
    `anthropic` engine 32,000, as its API requires one), and local ones stop after `expected_tokens`."""
    expected_tokens: int = Field(default=1024, ge=1)
    """Tokens of a reply that budgets reserve if neither the request nor `max_tokens` limits it. A longer one
    is booked in full."""
    chars_per_token: float = Field(default=2.5, gt=0)
    """Characters of ASCII text per token by which budgets reserve a prompt. English text has 4 or more and
    code about 3; the rest is a margin. If it is not written, it holds until the model's own rate is learned
    from the usage that it reports; a written one is kept."""
    image_tokens: int = Field(default=2_000, ge=0)
    """Tokens that budgets reserve for an image. Most providers bill 85 to about 1,700; gpt-4o-mini 25,000."""
    fallbacks: tuple[str, ...] = ()
    """Models asked, in this order, when this one fails."""
    fallbacks_on_premises: bool = False
    """Whether prompts meant for this model stay on premises when it fails or has no room: `fallbacks` may
    then name only such models, and no other model of the pool stands in."""
    on_premises: bool | None = None
    """Whether prompts to this model stay on premises. None: those to local engines do, and those to hosted
    ones do not. true suits a hosted engine whose server is your own."""
    capabilities: dict[Ability, bool] = Field(default={})
    """What the model can do, where that differs from what its provider, its name or its engine tells
    (`GET /v1/models` shows the result), such as {vision: false}."""

    @model_validator(mode="before")
    @classmethod
    def _priced(cls, card: object) -> object:
        return with_listed_prices(with_engine_defaults(card))

    @cached_property
    def abilities(self) -> frozenset[Ability]:
        """What the model can do. A model of the compact codec answers one message of text."""
        if self.codec != "instruct":
            return TEXT_ALONE
        given = self.capabilities
        added = {ability for ability, has in given.items() if has}
        return frozenset(a for a in abilities_of(self.engine) | added if given.get(a, True))

    def __copy__(self) -> Self:
        copied = super().__copy__()
        for name in ("abilities", "query_chars"):
            copied.__dict__.pop(name, None)  # a copy may get another engine
        return copied

    def lacking(self, needs: Iterable[Need]) -> Need | None:
        """The first of `needs` that the model cannot meet; None if it can meet all."""
        able = self.abilities
        for need in needs:
            if need.ability not in able if need.ability is not None else not can_say(self.engine, need.param):
                return need
        return None

    def may_fall_back_on(self, other: ModelConfig) -> bool:
        """Whether a prompt meant for this model may go to `other` in its place."""
        is_inside = other.on_premises
        if is_inside is None:
            is_inside = not isinstance(other.engine, HostedEngineConfig)
        return is_inside or not self.fallbacks_on_premises

    @property
    def is_forwarding(self) -> bool:
        """Whether parameters, message parts and replies that R2 does not interpret pass unchanged."""
        return isinstance(self.engine, HostedEngineConfig) and self.codec == "instruct"

    @property
    def reply_limit(self) -> int | None:
        """Longest reply to ask for if the request names none, in tokens; None for no limit."""
        is_local = not isinstance(self.engine, HostedEngineConfig)
        return self.max_tokens or (self.expected_tokens if is_local else None)

    @property
    def reply_tokens(self) -> int:
        """Tokens to reserve for a reply if the request names no limit."""
        return self.max_tokens or self.expected_tokens

    @cached_property
    def query_chars(self) -> int | None:
        """Most characters of a request that the model is sent as it is; None if its context is not known."""
        if not self.has_known_context:
            return None
        return max(MAX_CHARS_PER_TOKEN * self.context_tokens, ROUTED_QUERY_CHARS)

    @property
    def has_known_context(self) -> bool:
        """Whether `context_tokens` is the model's own, and not the default of a hosted model."""
        return super().has_known_context or not self.is_forwarding

    @property
    def has_fixed_rate(self) -> bool:
        """Whether `chars_per_token` is written, so that nothing else is learned."""
        return "chars_per_token" in self.model_fields_set

    @property
    def sends_schema(self) -> bool:
        """Whether a JSON schema for the reply goes to a provider, which bills it as a part of the prompt."""
        return isinstance(self.engine, HostedEngineConfig) and "json_schema" in self.abilities


class ModelServerConfig(Config):
    """`args` of a local model's own application."""

    engine: LocalEngineConfig
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas. Above 1, Ray Serve adds one where the others have worked on more than a quarter of the
    calls they take at once for 10 s, and removes one after 300 s with less. `autoscaling_config` in the entry
    of `Model` replaces that, and can be changed without a restart."""


def with_engines(
    models: Iterable[ModelConfig], applications: Mapping[str, ModelServerConfig]
) -> tuple[ModelConfig, ...]:
    """`models`, where each served one knows the engine of its application, if it is one of `applications`."""
    return tuple(_with_engine(model, applications) for model in models)


def _with_engine(model: ModelConfig, applications: Mapping[str, ModelServerConfig]) -> ModelConfig:
    engine = model.engine
    if not isinstance(engine, ServedEngineConfig) or engine.runs or engine.app not in applications:
        return model
    runs = applications[engine.app].engine
    return model.model_copy(update={"engine": engine.model_copy(update={"runs": runs})})


class RouterConfig(Config):
    """`args` of the router application."""

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    """The pool: every model that may be called, in the order in which clients see them."""
    gpu_usd_per_hour: Decimal = Field(default=Decimal(1), ge=0)
    """Price of a GPU, for local models with `tokens_per_s`. Clouds ask about 1 USD for one of 24 GB."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas of `Router`, `Decomposer` and `Allocator` each. Above 1, Ray Serve adds one where the
    others have worked on more than three quarters of `server.max_running` for 10 s (stages: on 128 calls).
    `autoscaling_config` in the entry of a deployment replaces that, and can be changed without a restart."""
    prices_as_of: str = ""
    """Date of the prices, for reports. Empty: that of the table, if prices are taken from it."""
    server: ServerConfig = ServerConfig()

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, router: object) -> object:
        return with_table_date(with_gpu_prices(router))

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        names = [model.name for model in self.models]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"models named twice: {repeated}")
        for model in self.models:
            unknown = [name for name in model.fallbacks if name not in names or name == model.name]
            if unknown:
                raise ValueError(
                    f"fallbacks of {model.name!r} name {unknown}: must be other models of {names}"
                )
            outside = [name for name in model.fallbacks if not model.may_fall_back_on(self.model(name))]
            if outside:
                raise ValueError(
                    f"fallbacks of {model.name!r} name {outside}, to which prompts leave the premises: "
                    "leave them out, set fallbacks_on_premises to false, or on_premises of those to true"
                )
        return self

    def model(self, name: str) -> ModelConfig:
        """Raises: KeyError."""
        return {model.name: model for model in self.models}[name]
