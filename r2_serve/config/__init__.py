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
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from r2_serve.config.abilities import TEXT_ALONE, abilities_of, can_say
from r2_serve.config.engines import (
    SAFE_LOAD_FORMATS,
    Adapters,
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
from r2_serve.config.gates import GateCheck, GateConfig
from r2_serve.config.limits import CooldownConfig, LimitsConfig
from r2_serve.config.prices import with_listed_prices, with_table_date
from r2_serve.config.prompts import PromptExample, Prompts, read_prompts
from r2_serve.config.providers import with_engine_defaults
from r2_serve.config.scaling import PlanAheadConfig
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
    "FEEDBACK_FILE",
    "SAFE_LOAD_FORMATS",
    "AllocatorConfig",
    "Config",
    "CooldownConfig",
    "DecomposerConfig",
    "EmbeddingsEngineConfig",
    "EngineConfig",
    "EnvName",
    "EventsConfig",
    "FeedbackConfig",
    "GateCheck",
    "GateConfig",
    "HostedEngineConfig",
    "LimitsConfig",
    "LocalEngineConfig",
    "NumpyEngineConfig",
    "PromptExample",
    "Prompts",
    "PlanAheadConfig",
    "RecordedEngineConfig",
    "OtelConfig",
    "ResponsesConfig",
    "ScoreWeights",
    "ScriptedEngineConfig",
    "ServedEngineConfig",
    "ServerConfig",
    "SpeedConfig",
    "TransformersEngineConfig",
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
        copied.__dict__.pop("abilities", None)  # a copy may get another engine
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

    @property
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


class ModelTunables(Config):
    """`user_config` of a local model's `Model` deployment, which changes live."""

    adapters: Adapters = Field(default={})
    """Adapters that the engine holds beyond those it started with."""


class AdapterLoad(Config):
    """`args` of the short-lived application that loads an adapter for `r2-serve publish`."""

    app: str
    """The model's application."""
    name: str
    """The adapter's name."""
    path: str
    """The adapter's directory, on the nodes of the model's replicas."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for all replicas together; loading a large adapter from a network disk takes minutes."""


class RouterConfig(Config):
    """`args` of the router application."""

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    """The pool: every model that may be called, in the order in which clients see them."""
    prices_as_of: str = ""
    """Date of the prices, for reports. Empty: that of the table, if prices are taken from it."""
    server: ServerConfig = ServerConfig()

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, router: object) -> object:
        return with_table_date(router)

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


class SpillConfig(Config):
    """Sends a subtask whose model has no room to the next cheapest model of the pool that has."""

    calls_per_replica: float = Field(gt=0)
    """Calls in progress at which a replica of a local model has no room: `target_ongoing_requests` or more.
    A model without a replica has no room; a hosted model has room unless it rests after failures."""


GateName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class VirtualModelConfig(Config):
    """A name clients may ask for that is routed, such as `r2`."""

    pool: tuple[str, ...] = Field(min_length=1)
    """Models that may answer subtasks, cheapest first: a compact allocator numbers them in this order."""
    decomposer: DecomposerConfig
    allocator: AllocatorConfig
    baseline: str | None = None
    """The model that savings are measured against (`x-r2-saved-usd`); None for the default model. It may be
    any of `models`, also one outside the pool."""
    default_model: str | None = None
    """Model used if no plan or no allocation can be made; None for the last of the pool, the strongest."""
    policy: str = "learned"
    """How subtasks get models if the request names no policy: `learned`, `cheapest`, `all:MODEL`, `random`;
    or `one:MODEL` and `one:auto`, which send every query whole to one model."""
    gates: dict[GateName, GateConfig] = Field(default={})
    """Gates by name. A gate may stand where a model's name may: in `policy` (`one:GATE`, `all:GATE`), in
    `whole`, in the choice of an instruct allocator, and in requests (`r2.gate`, `r2.policy`, `r2.models`)."""
    whole: str | None = None
    """A gate that answers queries which are not split. It is used where it is expected to cost less than the
    direct call. None: the default model answers them."""
    plan: Literal["auto", "always", "never"] = "auto"
    """Whether queries are split: `auto` splits one if that is expected to cost less than asking the default
    model for all of it; `never` sends each whole to one model, as the policy `one:auto` does."""
    planning_share: Decimal = Field(default=Decimal("0.1"), gt=0, le=1)
    """Most that a plan and its allocation may cost with `plan: auto`, as a share of the direct call. The bill
    exceeds that of the direct call by no more than this share, unless calls fail."""
    plan_file: str | None = None
    """What `r2-train fit RUN --planned NAME --direct NAME` wrote: JSON, at a path that every router process
    can read. With `plan: auto` it says which prompts are worth a plan. None: arithmetic alone decides, with
    lengths of answers that are assumed. It is read once, so a new fit gets a new path."""
    context: Literal["full", "needed", "stated"] = "full"
    """What steps read of the client's conversation. `needed`: inner steps read its system messages, and all
    of it only where the plan says that a step needs it; the allocator then reads the plan alone. `stated`:
    this holds for the last step too. `full` is the default as plans that are wrong about this give wrong
    answers."""
    fallbacks: Literal["pool", "typed"] = "pool"
    """Models asked when one is rate-limited, down or gives no answer: its own `fallbacks`, then with `pool`
    the other capable models of the pool, the next dearer ones first. `typed`: its own `fallbacks` alone.
    Where a request names the model (`r2.models`, `r2.policy`), the pool does not stand in for it."""
    spill: SpillConfig | None = None
    """None: subtasks wait for the model chosen for them."""
    prompts: Prompts | None = None
    """A YAML file with the texts of the prompts and with examples, which every router node must see; or the
    texts themselves. None: the built-in texts. Adapters name the texts that they were trained with."""
    description: str = ""
    """One line for clients that list the models."""

    @model_validator(mode="before")
    @classmethod
    def _prompts_reach_both_modules(cls, given: object) -> object:
        if not isinstance(given, Mapping) or not (prompts := given.get("prompts")):
            return given
        texts = read_prompts(prompts) if isinstance(prompts, str) else prompts
        changed: dict[str, object] = {**given, "prompts": texts}
        for module in ("decomposer", "allocator"):
            if isinstance(section := given.get(module), Mapping):
                changed[module] = {**section, "prompts": texts}
            elif isinstance(section, Config):
                changed[module] = section.model_copy(update={"prompts": Prompts.model_validate(texts)})
        return changed

    @model_validator(mode="after")
    def _gates_resolve(self) -> Self:
        for name, gate in self.gates.items():
            if name in self.pool or name in ("auto", "request"):
                raise ValueError(f"gate {name!r} has the name of a model of the pool, or a reserved one")
            if unknown := sorted(set(gate.ask) - set(self.pool)):
                raise ValueError(f"gate {name!r} asks {unknown}: choose among the pool, {list(self.pool)}")
        if self.whole is not None and self.whole not in self.gates:
            raise ValueError(f"whole: no gate {self.whole!r}; the gates are {sorted(self.gates)}")
        return self

    @property
    def fallback_model(self) -> str:
        return self.default_model or self.pool[-1]

    @property
    def checkers(self) -> frozenset[str]:
        """The models that check the answers of gates; they need not be of the pool."""
        found = (evidence for gate in self.gates.values() for evidence in gate.accept)
        return frozenset(evidence.model for evidence in found if evidence.kind == "checker")

    @property
    def baseline_model(self) -> str:
        """The model that savings are measured against."""
        return self.baseline or self.fallback_model


class RoutingConfig(Config):
    """`user_config` of the `Router` deployment. Each request keeps the version it started with."""

    virtual_models: dict[str, VirtualModelConfig] = Field(min_length=1)
    """Virtual models by the name that clients ask for."""
    limits: LimitsConfig = LimitsConfig()

    def check_against(self, models: tuple[ModelConfig, ...]) -> None:
        """Raises: ValueError if a name is not one of `models`."""
        known = {model.name for model in models}
        for name, virtual in self.virtual_models.items():
            used = {*virtual.pool, virtual.decomposer.model, virtual.allocator.model, virtual.fallback_model}
            used |= virtual.checkers
            used.add(virtual.baseline_model)
            if used - known:
                raise ValueError(
                    f"virtual model {name!r} names {sorted(used - known)}; choose among {sorted(known)}"
                )
            if name in known:
                raise ValueError(f"{name!r} is both a virtual model and a pool model: rename one")
