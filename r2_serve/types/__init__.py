"""The nouns of the router; those of one model call are in `calls`. It imports no other package of R2.

Records are frozen and validate on construction, so an invalid `Plan` cannot exist. Money is `Decimal`
USD, exact; time is seconds (`_s`). Text of a subtask refers to earlier answers as `#1`, `#2`, ...
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from r2_serve.types.abilities import READ_BY_ENGINES, Ability, Need, asks_of, needs_of
from r2_serve.types.calls import (
    BYTES_PER_TOKEN,
    Api,
    Completion,
    CountingEngine,
    Delta,
    Engine,
    EngineCall,
    FinishReason,
    Json,
    LocalEngine,
    Message,
    OnDelta,
    Priority,
    Record,
    Role,
    Sampling,
    Usage,
    Work,
    likely_tokens,
)
from r2_serve.types.events import CalledModel, Event
from r2_serve.types.gates import GateAsk, GateNote, GateSpec, GraderName
from r2_serve.types.plans import (
    REFERENCE,
    Allocation,
    Plan,
    Subtask,
    references,
    substitute,
    substituted_chars,
)
from r2_serve.types.served import Arm, RolloutNote, Savings, text_hash
from r2_serve.types.tracing import TraceContext, new_span_id

__all__ = [
    "BYTES_PER_TOKEN",
    "READ_BY_ENGINES",
    "REFERENCE",
    "Ability",
    "Allocation",
    "Api",
    "Arm",
    "CalledModel",
    "Completion",
    "CountingEngine",
    "Delta",
    "Engine",
    "EngineCall",
    "Event",
    "FinishReason",
    "GateAsk",
    "GateNote",
    "GateSpec",
    "GraderName",
    "Json",
    "LocalEngine",
    "Message",
    "Need",
    "OnDelta",
    "Plan",
    "Priority",
    "Record",
    "Role",
    "RolloutNote",
    "Sampling",
    "Savings",
    "Subtask",
    "TraceContext",
    "Usage",
    "Work",
    "asks_of",
    "likely_tokens",
    "needs_of",
    "new_span_id",
    "references",
    "substitute",
    "substituted_chars",
    "text_hash",
]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelGroup = Literal["slm", "mlm", "llm"]


class Prices(Record):
    """USD per million tokens of one model."""

    usd_per_mtok_in: Decimal = Field(ge=0)
    usd_per_mtok_out: Decimal = Field(ge=0)
    usd_per_mtok_cached_read: Decimal | None = Field(default=None, ge=0)
    """Price of prompt tokens read from the provider's cache; None for that of all others."""
    usd_per_mtok_cached_write: Decimal | None = Field(default=None, ge=0)
    """Price of prompt tokens written to the provider's cache; None for that of all others."""
    usd_per_mtok_cached_hour_write: Decimal | None = Field(default=None, ge=0)
    """Price of those that the cache keeps for an hour (Anthropic's `ttl: 1h`); None for that of writes."""
    usd_per_mtok_reasoning: Decimal | None = Field(default=None, ge=0)
    """Price of tokens that the model thinks and does not show; None for that of the reply."""

    def usd_of(self, usage: Usage) -> Decimal:
        """Exact cost of `usage` in USD."""
        usual_write = self.usd_per_mtok_cached_write
        usual_write = self.usd_per_mtok_in if usual_write is None else usual_write
        spent = usage.prompt_tokens * self.usd_per_mtok_in + usage.completion_tokens * self.usd_per_mtok_out
        for tokens, price, usual in (
            (usage.cached_read_tokens, self.usd_per_mtok_cached_read, self.usd_per_mtok_in),
            (usage.cached_write_tokens, self.usd_per_mtok_cached_write, self.usd_per_mtok_in),
            (usage.cached_hour_write_tokens, self.usd_per_mtok_cached_hour_write, usual_write),
            (usage.reasoning_tokens, self.usd_per_mtok_reasoning, self.usd_per_mtok_out),
        ):
            if price is not None and tokens:
                spent += tokens * (price - usual)
        return spent / 1_000_000


class PriceTier(Prices):
    """The prices of all tokens of a call whose prompt is longer than `over_prompt_tokens`."""

    over_prompt_tokens: int = Field(ge=1)


class ModelCard(Prices):
    """A pool model as the router sees it: name, price and ability, but not how it is run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=100)
    codec: Literal["instruct", "compact", "compact-chains"] = "instruct"
    """Dialect of the model's prompts (`r2_serve.prompts`)."""
    group: ModelGroup = "slm"
    """Capability group: small, medium or large language model."""
    price_tiers: tuple[PriceTier, ...] = ()
    """Prices of calls with longer prompts, where the provider has such; the last one exceeded holds."""
    context_tokens: int = Field(default=32_768, ge=1)
    description: str = ""
    """One line on what the model is good at, shown to an instruct allocator."""
    skills: dict[str, float] = Field(default_factory=dict)
    """Measured share of steps that the model solves, from 0 to 1, by kind of step (`+`, `reverse`). A compact
    allocator reads prices and skills of a pool that has them, and places in the pool otherwise."""

    @property
    def has_known_context(self) -> bool:
        """Whether `context_tokens` is written, and not the default."""
        return "context_tokens" in self.model_fields_set

    def cost_usd(self, usage: Usage) -> Decimal:
        """Exact cost in USD of one call that used `usage`."""
        over = [tier for tier in self.price_tiers if usage.prompt_tokens > tier.over_prompt_tokens]
        return max(over, key=lambda tier: tier.over_prompt_tokens, default=self).usd_of(usage)


CallStage = Literal["decompose", "allocate", "execute", "check", "pass_through"]
"""The part of the work on a query that a call belongs to; `check` is a model that checks a gate's answer."""


class CallRecord(Record):
    """One attempt at one model call, as the ledger settled it (failed and cancelled ones too)."""

    stage: CallStage
    model: str
    subtask: int | None = None
    attempt: int = Field(default=1, ge=1)
    outcome: Literal["ok", "failed", "cancelled"] = "ok"
    error: str | None = None
    usage: Usage = Usage()
    cost_usd: Decimal = Decimal(0)
    is_estimated: bool = False
    """True if no usage was reported, so that it is estimated from what was sent and received."""
    passed_over: tuple[str, ...] = ()
    """Models that come before this one but rest after failures (`r2_serve.calls.cooldown`)."""
    start_s: float = 0.0
    """Seconds after the request's start."""
    end_s: float = 0.0
    work: Work | None = None
    """Replica time used by this call; None for hosted models and failed calls."""
    span_id: str | None = None
    """The call's span in a distributed trace; None if the query is in none."""


class SubtaskResult(Record):
    """The outcome of one subtask."""

    id: int
    model: str
    answer: str
    usage: Usage
    cost_usd: Decimal
    num_attempts: int = 1
    finish_reason: FinishReason = "stop"
    """Why the reply ended; `length` means that it was cut at its limit."""
    gate: GateNote | None = None
    """What the gate did that answered the subtask; None if a model was asked alone."""
    confidence: float | None = None
    """The 0.4-quantile of the probabilities of the reply's tokens; None if the engine gave none."""
    ready_s: float
    """Seconds from the request's start to the answer of the last subtask that it depends on."""
    start_s: float
    end_s: float


class SessionNote(Record):
    """How a turn of a session got its model."""

    state: Literal["new", "kept", "left"]
    """`left` if the turn before was answered by another model."""
    model: str
    turn: int = Field(ge=1)
    """Number of the turn in the session, as far as this process knows it."""
    reason: str


DecisionReason = Literal[
    "asked",
    "configured",
    "may_save",
    "beyond_text",
    "short",
    "too_long",
    "nothing_to_save",
    "no_gain",
    "planning_too_dear",
    "no_valid_plan",
    "plan_too_dear",
    "no_format",
    "ran_away",
    "no_budget",
]
"""Why a query was split or not (`docs/architecture.md` explains each)."""


class Decision(Record):
    """Whether a query was split, and what was expected of both ways (`r2_serve.router.plan_or_not`)."""

    action: Literal["whole", "planned"]
    reason: DecisionReason
    baseline: str
    """The virtual model's default model, which the direct call would ask."""
    expected_tokens: int
    """Expected length of the answer."""
    direct_usd: Decimal
    """Expected cost of the direct call."""
    planning_usd: Decimal | None = None
    """The most that plan and allocation could cost, or what a fit expects; None where that was not asked."""
    plan_usd: Decimal | None = None
    """Expected bill of the plan with all that was spent before it; None if no plan was allocated."""
    dropped_plan: Plan | None = None
    """The plan that was made and given up; None if there is none."""


class Trace(Record):
    """The record of one query, answered or failed, which serving writes and training reads."""

    request_id: str
    model: str
    """The model that the client asked for: a virtual one, or a pool model (pass-through, without a plan)."""
    query: str
    """The client's messages as one text; empty where texts are not kept (`server.trace_texts`)."""
    query_hash: str = ""
    """The first 16 digits of the SHA-256 hash of `query`."""
    reply_id: str = ""
    """The id of the reply without the prefix of its dialect."""
    client: str = ""
    """The name of the client's key; empty without keys."""
    plan: Plan | None = None
    allocation: Allocation | None = None
    results: tuple[SubtaskResult, ...] = ()
    calls: tuple[CallRecord, ...] = ()
    answer: str | None = None
    error: str | None = None
    """Type and message of the error; None if the query was answered."""
    plan_fallback: str | None = None
    """Why the one-step plan was used; None if the decomposer's plan was."""
    allocation_fallback: str | None = None
    """Why the default model was used; None if the allocator's choice was."""
    session: SessionNote | None = None
    """Why the model of a turn stayed or changed; None for a query that belongs to no session."""
    context: TraceContext | None = None
    """The query's place in a distributed trace."""
    policy: str = "learned"
    shares: dict[str, float] = Field(default={})
    """The probability of each model where the policy draws one at random; empty where it does not."""
    propensities: tuple[float, ...] = ()
    """The probability of the model or gate chosen for each step, with `explore`; empty without."""
    decision: Decision | None = None
    """Whether the query was split, and why; None for a pool model asked by its name."""
    num_plan_samples: int = 0
    num_plan_rejected: int = 0
    began_s: float = 0.0
    """Unix time at which the query came; 0 in traces of versions before 0.3."""
    deadline_s: float | None = None
    """Seconds that the query had for its answer; None in traces of versions before 0.3."""
    duration_s: float = 0.0
    overhead_s: float = 0.0
    """Seconds in which no subtask ran: decomposing, allocating and scheduling."""
    cost_usd: Decimal = Decimal(0)
    worker_cost_usd: Decimal = Decimal(0)
    """Cost of the calls that worked on the query, without the router's own (`decompose`, `allocate`)."""
    savings: Savings | None = None
    """Savings against the baseline; None for a failed query, a plan alone, or a pool model by its name."""
    rollout: RolloutNote | None = None
    """The router that answered while a candidate is on trial; None if none is."""

    @property
    def task(self) -> str:
        """A name that no other query has: request ids may be chosen by clients."""
        return self.reply_id or self.request_id


class Query(Record):
    """One request of a client, already parsed: what `Pipeline.answer` takes."""

    request_id: str
    model: str
    """A virtual model (routed) or a pool model (plain pass-through)."""
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling = Sampling()
    """Applied to the final step; inner steps are greedy."""
    policy: str | None = None
    """An allocation policy (`r2_serve.router.policies`); None for the virtual model's own."""
    plan: Plan | None = None
    """The client's own plan, which is not decomposed."""
    pinned: dict[int, str] = Field(default={})
    """Models and gates that the client chose for subtasks of its own plan, by subtask id."""
    gate: str | GateSpec | None = None
    """A gate of the virtual model, by its name, or the client's own one. It answers the query whole, or every
    step of the client's own plan."""
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    max_subtasks: int | None = Field(default=None, ge=1)
    deadline_s: float | None = Field(default=None, gt=0)
    session: str | None = None
    """Name of the conversation, the same in all its turns; None: its first messages tell it from others."""
    reply_id: str = ""
    """The id of the reply without the prefix of its dialect, by which feedback may name the query."""
    rollout: RolloutNote | None = None
    """The router that answers, while a candidate is on trial."""
    client: str = ""
    """Name of the client's key, as sessions of one client are hidden from the others; empty without keys."""
    context: TraceContext | None = None
    """The query's place in a distributed trace; None if there is none."""
    is_plan_only: bool = False
    """Whether to decompose and stop, so that the answer is the plan as JSON; for virtual models only."""
    priority: Priority = "user"
    """Who waits for the answer, which ranks the query's calls in a busy engine."""


class Answer(Record):
    """The answer to a query, for the client."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    """Sum over every call made for the query."""
    cost_usd: Decimal
    models: tuple[str, ...]
    """Pool models that worked on the query, in order of first use; decomposer and allocator are left out."""
    num_subtasks: int = 0
    """Number of subtasks answered; 0 for a pass-through."""
    overhead_s: float = 0.0
    confidence: float | None = None
    """The 0.4-quantile of the final call's token probabilities; None unless `Sampling.logprobs` is set."""
    body: Json | None = None
    """The provider's reply as it came (`Completion.body`), for a pass-through to a hosted model."""
    trace: Trace


class AdapterManifest(Record):
    """The `adapter.json` of an adapter on disk: what it is, and which base and codec it was trained for."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Also the name of the directory. A name is never used again, as engines cache by name."""
    kind: Literal["lora", "full"] = "lora"
    """LoRA weights on top of `base`, or a whole tiny checkpoint that is called in its place."""
    base: str
    """Name of the pool model that the adapter was trained for and is called through."""
    module: Literal["decomposer", "allocator"]
    codec: str
    codec_version: int
    data_sha256: Sha256
    """SHA-256 of the training data."""
    prompts_sha256: Sha256 | None = None
    """Version of the virtual model's `prompts` in training; None for the built-in texts."""
    metrics: dict[str, float] = Field(default={})
    created: AwareDatetime
    trainer: str = ""
    """The command that made the adapter."""
    files: dict[str, Sha256] = Field(default={})
    """SHA-256 of each other file in the directory; `write_adapter` fills it in."""
