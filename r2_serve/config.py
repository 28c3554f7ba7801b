"""What an operator may set: every field with its default and meaning beside it.

Two halves, as Ray Serve restarts an application when its `args` change but not when `user_config` does:

- `RouterConfig` (`args` of the router application): the pool's models, prices and how each is reached; the server.
- `RoutingConfig` (`user_config` of its `Router` deployment, changed live): virtual models, adapters, limits.

A local model is an application of its own, whose `args` are a `ModelServerConfig`. Unknown keys are errors.
Secrets are named by environment variable, never written here. Reading YAML is `r2_serve.serve_config`'s.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from r2_serve.types import ModelCard


class Config(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_CALLS = re.compile(r"/(chat/completions|completions|responses|embeddings|messages|models)/*$")


def _is_address(url: str) -> str:
    """A URL that can be logged: no user, no password, no query. Paths of single calls are not a base."""
    if url != "".join(url.split()):
        raise ValueError(f"holds blanks: write {''.join(url.split())}")
    parts = urlsplit(url)
    has_more = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or has_more:
        raise ValueError(
            "must be http(s)://HOST[:PORT][/PATH] and nothing more: "
            "a key belongs in the variable that api_key_env names"
        )
    _ = parts.port  # raises ValueError beyond 65535
    if call := _CALLS.search(url):
        raise ValueError(
            f"names one call ({call[0]}), which the router adds itself: write {url[: call.start()]}"
        )
    return url


SAFE_LOAD_FORMATS = (
    *(
        "safetensors",
        "fastsafetensors",
        "instanttensor",
        "mistral",
        "runai_streamer",
        "runai_streamer_sharded",
        "sharded_state",
    ),
    "dummy",
)
"""Of vLLM 0.29: those that read safetensors and nothing else, or nothing at all. `auto` and `hf` take a pickle where there is no other."""


def _runs_no_code(engine_kwargs: dict[str, Any]) -> dict[str, Any]:
    if engine_kwargs.get("trust_remote_code"):
        raise ValueError(
            "trust_remote_code would run code out of the checkpoint: use an architecture that vLLM itself knows"
        )
    load_formats = [engine_kwargs.get("load_format", "safetensors")]
    speculative = engine_kwargs.get("speculative_config")
    if isinstance(speculative, dict) and isinstance(draft := speculative.get("draft_load_config"), dict):
        load_formats.append(draft.get("load_format", "auto"))
    for load_format in load_formats:
        if load_format not in SAFE_LOAD_FORMATS:
            raise ValueError(
                f"load_format {load_format!r} may unpickle, which can run code: "
                f"use one of {', '.join(SAFE_LOAD_FORMATS)} (a checkpoint can be converted to safetensors)"
            )
    return engine_kwargs


EnvName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
"""Name of an environment variable (not its value)."""


# -- engines: how a model is reached or run -----------------------------------------------------------------------


class ServedEngineConfig(Config):
    """A local model served by another application of the same Ray Serve cluster."""

    kind: Literal["served"]
    app: str
    """Name of that application; its deployment is called `Model`."""


class HostedEngineConfig(Config):
    """A model behind an OpenAI-compatible API: OpenAI, Azure OpenAI, DeepSeek, Qwen, a vLLM server."""

    kind: Literal["openai", "azure"]
    model: str
    """The provider's name of the model (Azure: of the deployment)."""
    base_url: Annotated[str, AfterValidator(_is_address)] = "https://api.openai.com/v1"
    """Azure: the resource's endpoint, https://NAME.openai.azure.com."""
    api_key_env: EnvName | None = None
    """Environment variable that holds the key; None where the server asks for none."""
    api_version: str | None = None
    """Azure only."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    supports_json_schema: bool = True
    """Whether the provider takes `response_format`: for plans and allocations, and as a client wants it, who is refused it where not."""
    extra_body: dict[str, Any] = {}
    """Sent verbatim with every request."""


class NumpyEngineConfig(Config):
    """A small Qwen2 or Llama checkpoint in plain numpy: it needs no torch, and the shipped models run on it."""

    kind: Literal["numpy"]
    path: str
    """`embedded:NAME` for a shipped model, or a directory."""
    max_batch_size: int = Field(default=64, ge=1)
    """Replies that are decoded at once; more calls wait in the engine."""
    adapters: dict[str, str] = {}
    """Whole checkpoints by name, loaded at the start. `user_config` changes them live."""


class TransformersEngineConfig(Config):
    """A checkpoint run in the process by transformers: for larger models on a machine without GPU."""

    kind: Literal["transformers"]
    path: str
    """`embedded:NAME` for a shipped tiny model, a directory, or a hub name."""
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch_size: int = Field(default=64, ge=1)
    num_threads: int = Field(default=1, ge=1)
    """Threads of torch; 1 shares a small machine best."""
    adapters: dict[str, str] = {}
    """Adapters by name, loaded at the start: directory of each, LoRA or a whole checkpoint. `user_config` changes them live."""


class VllmEngineConfig(Config):
    """A checkpoint run by vLLM's AsyncLLM in the replica."""

    kind: Literal["vllm"]
    model: str
    """`embedded:NAME`, a directory, or a hub name."""
    engine_kwargs: Annotated[dict[str, Any], AfterValidator(_runs_no_code)] = {}
    """Passed to `AsyncEngineArgs` verbatim, but for what would run code out of a checkpoint."""
    adapters: dict[str, str] = {}
    """LoRA adapters by name, loaded at the start: directory of each. `user_config` changes them live."""


class SpeedConfig(Config):
    """How fast a replica of a model is: what the scripted engine imitates and the simulator computes with."""

    start_s: float = Field(default=0.0, ge=0)
    """From the start of its process to its first request: loading and warming up."""
    prefill_tokens_per_s: float = Field(gt=0)
    """Prompt tokens; the time to a first token is the prompt's length by this, in a batch of any size."""
    decode_tokens_per_s: float = Field(gt=0)
    """Reply tokens of a sequence that is alone."""
    max_batch_size: int = Field(default=64, ge=1)
    """Sequences at work at once; more wait in the engine, first come first served."""
    batch_slowdown: float = Field(default=0.0, ge=0)
    """A decoding step of b sequences takes 1 + batch_slowdown * (b - 1) times that of one."""


class ScriptedEngineConfig(Config):
    """The shipped fake: replies from a list, at a fixed delay or a real engine's pace, for dry runs, experiments and tests."""

    kind: Literal["scripted"]
    replies: tuple[str, ...] = ("ok",)
    """Given in turn, again from the first after the last. `{prompt}` stands for the last message, `{words}` for as many words as the
    last "N words" in it asks for, `{json:KEY}` for what the first JSON object in it that has KEY holds there, and `{asked}` for the
    first JSON object in it that has the keys of the JSON schema asked for, or else `{words}`: so one model serves every stage."""
    delay_s: float = Field(default=0.0, ge=0)
    """Service time of a call; a streamed reply spreads it over its words."""
    speed: SpeedConfig | None = None
    """Takes its place: service times follow from the words of prompt and reply, and from what else is in the batch."""
    dies_on: str | None = Field(default=None, min_length=1)
    """Text in a prompt that kills the process, as a fault in native code would: to see how the rest recovers."""
    adapters: dict[str, str] = {}
    """Names that calls may give, and a directory each. In a reply `{adapter}` stands for the one that was named, or `base`."""

    @model_validator(mode="after")
    def _one_pace(self) -> Self:
        if self.speed is not None and self.delay_s:
            raise ValueError("delay_s and speed are two ways to say how long a call takes: give one")
        return self


EngineConfig = Annotated[
    ServedEngineConfig
    | HostedEngineConfig
    | NumpyEngineConfig
    | TransformersEngineConfig
    | VllmEngineConfig
    | ScriptedEngineConfig,
    Field(discriminator="kind"),
]
LocalEngineConfig = Annotated[
    NumpyEngineConfig | TransformersEngineConfig | VllmEngineConfig | ScriptedEngineConfig,
    Field(discriminator="kind"),
]


class ModelConfig(ModelCard):
    """A pool model: its card, and how to reach it."""

    engine: EngineConfig
    timeout_s: float = Field(default=60.0, gt=0)
    """Of one call, without the time that a client takes to read a stream; never past the request's deadline."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest reply asked for where the request names none; also what is reserved in the budget."""
    fallbacks: tuple[str, ...] = ()
    """Models tried, in order, when this one fails."""

    @property
    def sends_schema(self) -> bool:
        """Whether a JSON schema for the reply goes to a provider, which bills it as a part of the prompt."""
        return isinstance(self.engine, HostedEngineConfig) and self.engine.supports_json_schema


class ModelServerConfig(Config):
    """`args` of a local model's own application."""

    engine: LocalEngineConfig


class ModelTunables(Config):
    """`user_config` of a local model's `Model` deployment, changed live."""

    adapters: dict[str, str] = {}
    """Adapters by name: directory of each. A new version needs a new name: engines cache by name."""


class AdapterLoad(Config):
    """`args` of the short-lived application by which `r2-serve publish` has an adapter loaded before anything names it."""

    app: str
    """The model's application."""
    name: str
    path: str
    timeout_s: float = Field(default=600.0, gt=0)


class PlanAheadConfig(Config):
    """`policy_kwargs` of `r2_serve.scaling.serve_policy:PlanAhead`, the autoscaling policy that knows what plans will need."""

    cold_start_s: float = Field(default=60.0, gt=0)
    """From asking for a replica to its first call, on a node that is up. Measure it: too low and replicas come too late, too high
    and they wait for work."""
    drain_s: float = Field(default=5.0, gt=0)
    """Calls that wait when a new replica is up should be through this much later: the wait that your users bear."""
    trend: float = Field(default=1.0, ge=0, le=1)
    """How far queries are taken to go on coming at the rate of the last seconds: 0 plans for those alone that are here."""


class ServerConfig(Config):
    """The HTTP endpoint."""

    api_keys_env: EnvName | None = None
    """Environment variable with comma-separated client keys: every model, no budget."""
    keys_file: str | None = None
    """File of hashed client keys with names, models and budgets (`r2-serve keys new`), on each node that runs a router. A change
    needs no restart. This or `api_keys_env` is required to bind a non-loopback address."""
    spend_file: str | None = None
    """SQLite file of what each key has spent. None: budgets count from the router's start, each router replica for itself."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    body_timeout_s: float = Field(default=60.0, gt=0)
    """From a request's head to the end of its body: one that is sent byte by byte ends with 408."""
    max_running: int = Field(default=64, ge=1)
    """Requests worked on at once by one router replica."""
    max_queued: int = Field(default=256, ge=0)
    """Requests waiting beyond those; more are refused with 429."""
    heartbeat_s: float = Field(default=10.0, gt=0)
    """SSE comment sent while inner subtasks run and nothing else is to be sent."""
    trace_dir: str | None = None
    """Directory of trace JSONL files (queries and answers in clear); None writes none."""


class RouterConfig(Config):
    """`args` of the router application."""

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    prices_as_of: str = ""
    """Date of the prices, for reports."""
    server: ServerConfig = ServerConfig()

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
        return self

    def model(self, name: str) -> ModelConfig:
        """Raises: KeyError."""
        return {model.name: model for model in self.models}[name]


# -- routing: what may change live --------------------------------------------------------------------------------


class ScoreWeights(Config):
    """Weights of a plan's score, lower is better (paper, Eq. 1; its values are not stated, these are ours)."""

    conciseness: float = Field(default=1 / 3, ge=0)
    practicality: float = Field(default=1 / 3, ge=0)
    coherence: float = Field(default=1 / 3, ge=0)


class DecomposerConfig(Config):
    """How queries become plans."""

    model: str
    """Any model of `models`."""
    adapter: str | None = None
    """Adapter of that model; None: the model itself."""
    num_samples: int = Field(default=3, ge=1, le=16)
    """Plans sampled at once; the best valid one is kept (paper: 3)."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Of the samples; a single sample is greedy."""
    max_tokens: int = Field(default=1024, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    """Of all samples together; those not back by then count as rejected."""
    weights: ScoreWeights = ScoreWeights()


class AllocatorConfig(Config):
    """How subtasks get models."""

    model: str
    adapter: str | None = None
    max_tokens: int = Field(default=512, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)


class SpillConfig(Config):
    """Where the model chosen for a subtask has no room, the next cheapest of the pool that has takes it."""

    calls_per_replica: float = Field(gt=0)
    """Calls in progress on a replica of a local model at which it has none; sensibly its `target_ongoing_requests` or a little more.
    A model without a replica has none, so that nobody waits for a cold start. Hosted models have room unless they rest."""


class VirtualModelConfig(Config):
    """A name clients may ask for that is routed, such as `r2`."""

    pool: tuple[str, ...] = Field(min_length=1)
    """Models that may answer subtasks, cheapest first (the order in which a compact allocator numbers them)."""
    decomposer: DecomposerConfig
    allocator: AllocatorConfig
    default_model: str | None = None
    """Used where a plan or an allocation cannot be made; None: the pool's last."""
    policy: str = "learned"
    """`learned`, `all:MODEL` or `random`; a request may name another."""
    spill: SpillConfig | None = None
    """None: subtasks wait for the model chosen for them."""
    description: str = ""

    @property
    def fallback_model(self) -> str:
        return self.default_model or self.pool[-1]


class CooldownConfig(Config):
    """When a model that keeps failing is passed over in favour of its fallbacks, and for how long."""

    after_failures: int = Field(default=3, ge=1)
    """In a row, of the kind that may be tried again: no answer, 429, 5xx, a broken reply. Refusals do not count."""
    first_s: float = Field(default=10.0, ge=0)
    """The first rest; each after it, while no call is answered, is twice as long. 0: no model is ever rested."""
    longest_s: float = Field(default=300.0, gt=0)
    """Of any rest, one that the provider asked for (Retry-After) among them."""


class LimitsConfig(Config):
    """Bounds of one request, checked before any call is made for it. A request may lower them, never raise."""

    deadline_s: float = Field(default=120.0, gt=0)
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    max_calls: int = Field(default=64, ge=1)
    max_total_tokens: int = Field(default=500_000, ge=1)
    max_subtasks: int = Field(default=16, ge=1, le=256)
    max_depth: int = Field(default=12, ge=1)
    max_parallel: int = Field(default=16, ge=1)
    """Subtasks of one plan in flight at once."""
    max_subtask_chars: int = Field(default=4_000, ge=1)
    max_messages: int = Field(default=256, ge=1)
    max_query_chars: int = Field(default=200_000, ge=1)
    """Of all messages and the JSON schema together; of a step's text, or the answer's template, once others' answers are filled in."""
    max_tokens: int = Field(default=32_768, ge=1)
    """Longest reply that a request may ask for."""
    max_answer_chars: int = Field(default=20_000, ge=1)
    """Of a subtask's answer, as far as other subtasks get to read it; the rest is cut off, with a mark."""
    max_attempts: int = Field(default=2, ge=1, le=10)
    """Tries of one call on one model, before its fallbacks."""
    cooldown: CooldownConfig = CooldownConfig()
    """Of every model, in each process that calls it."""


class RoutingConfig(Config):
    """`user_config` of the `Router` deployment. Each request keeps the version it started with."""

    virtual_models: dict[str, VirtualModelConfig] = Field(min_length=1)
    limits: LimitsConfig = LimitsConfig()

    def check_against(self, models: tuple[ModelConfig, ...]) -> None:
        """Raises: ValueError where a name is not one of `models`."""
        known = {model.name for model in models}
        for name, virtual in self.virtual_models.items():
            used = {*virtual.pool, virtual.decomposer.model, virtual.allocator.model, virtual.fallback_model}
            if used - known:
                raise ValueError(
                    f"virtual model {name!r} names {sorted(used - known)}, not among the models {sorted(known)}"
                )
            if name in known:
                raise ValueError(f"{name!r} is both a virtual model and a pool model: rename one")
