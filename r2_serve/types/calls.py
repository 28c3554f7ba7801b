"""The nouns of one model call: messages, sampling, the reply and its pieces, and the protocol of engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Api = Literal["chat", "completions", "embeddings"]
"""What a model is asked for: to answer a conversation, to go on with a text, or for vectors."""
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
Json = dict[str, object]
"""A JSON object."""
Priority = Literal["user", "batch", "training"]
"""Who waits for a reply, the most urgent first."""


class Record(BaseModel):
    """Base of every domain record: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One chat message, as the client sent it."""

    role: Role
    content: str | tuple[Json, ...] | None
    """Text, or parts such as text and images; None for a message of tool calls alone."""
    more: Json = {}
    """Every other key: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, cache controls, ..."""
    items: tuple[Json, ...] | None = None
    """The items of the Responses API from which the message was read, if it does not say all of them. Only
    an engine that speaks this API sends them, in place of the message."""
    blocks: tuple[Json, ...] | None = None
    """The content blocks of the Messages API from which the message was read, if it does not say all of them.
    Only an engine that speaks this API sends them, in place of the message."""

    @property
    def text(self) -> str:
        """The text of all parts, for local models, routing and codecs."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content or () if part["type"] == "text")

    def saying(self, content: str | tuple[Json, ...]) -> Message:
        """The message with another content, which the client's own blocks and items do not say."""
        return self.model_copy(update={"content": content, "blocks": None, "items": None})

    def followed_by(self, text: str) -> Message:
        """The message with `text` at its end, which the client's own blocks get too."""
        content: str | tuple[Json, ...] = f"{self.content or ''}\n\n{text}"
        part: Json = {"type": "text", "text": text}
        if isinstance(self.content, tuple):
            content = (*self.content, part)
        blocks = self.blocks and (*self.blocks, part)
        return self.model_copy(update={"content": content, "blocks": blocks, "items": None})

    @property
    def is_plain(self) -> bool:
        """Whether `role` and `text` are all that there is."""
        return isinstance(self.content, str) and not self.more and self.role not in ("tool", "function")

    @property
    def wire(self) -> Json:
        """The message in OpenAI's dialect."""
        return {"role": self.role, "content": self.content, **self.more}


class Sampling(Record):
    """How an engine should decode. `None` means the engine's own default."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: int | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    json_schema: dict[str, Any] | None = None
    """JSON schema that the reply should satisfy. Engines that cannot enforce it ignore it."""
    words: tuple[tuple[str, ...], ...] = ()
    """The reply should be one word of each group, in order. Engines that cannot enforce it ignore it; the
    numpy engine enforces it."""
    response_format: dict[str, Any] | None = None
    """The client's format (OpenAI's `json_object` or `json_schema`): engines keep to it or refuse."""
    logprobs: bool = False
    """Ask for the log-probability of each generated token."""
    forwarded: Json = {}
    """Parameters that R2 does not interpret, such as `tools` and `n`, for engines that read them."""
    api: Api = "chat"
    """`forwarded` holds the `input` of embeddings, and the `prompt` of completions unless it is one text."""
    responses: Json | None = None
    """Parameters as a client of the Responses API sent them; None if it spoke another dialect. Only an
    engine that speaks this API sends them, and answers with items as they came."""
    messages_api: Json | None = None
    """Parameters as a client of the Messages API sent them; None if it spoke another dialect. Only an engine
    that speaks this API sends them."""
    only_messages_api: tuple[str, ...] = ()
    """Names of what the client asks that only an engine of the Messages API can do (`needs_of`)."""

    @property
    def num_choices(self) -> int:
        """Number of replies asked for at once; none to a request for embeddings."""
        if self.api == "embeddings":
            return 0
        asked = (self.forwarded.get(name) for name in ("n", "best_of"))
        prompts = self.forwarded.get("prompt") if self.api == "completions" else None
        num_prompts = len(prompts) if isinstance(prompts, list) and isinstance(prompts[0], list | str) else 1
        return num_prompts * max([1, *(number for number in asked if isinstance(number, int))])

    @property
    def format_sent(self) -> dict[str, Any] | None:
        """The schema sent with the prompt: `response_format` if set, else `json_schema`."""
        return self.response_format or self.json_schema


BYTES_PER_TOKEN = 4
"""UTF-8 bytes of a token, typical of English text; used only for calls that reported no usage."""


def likely_tokens(num_bytes: int) -> int:
    """An estimate of the tokens in a text of `num_bytes`, rounded up."""
    return -(-num_bytes // BYTES_PER_TOKEN)


class Usage(Record):
    """Tokens of one or many calls."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cached_read_tokens: int = Field(default=0, ge=0)
    """Those of the prompt that the provider read from its cache."""
    cached_write_tokens: int = Field(default=0, ge=0)
    """Those of the prompt that the provider wrote to its cache."""
    cached_hour_write_tokens: int = Field(default=0, ge=0)
    """Those of `cached_write_tokens` that it keeps for an hour, which Anthropic sells at another price."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Those of the completion that the model thought and did not show."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_read_tokens=self.cached_read_tokens + other.cached_read_tokens,
            cached_write_tokens=self.cached_write_tokens + other.cached_write_tokens,
            cached_hour_write_tokens=self.cached_hour_write_tokens + other.cached_hour_write_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class Work(Record):
    """Time that one call took of the replica that answered it, in seconds."""

    service_s: float
    """Time from the arrival of the call to the end of the reply."""
    share_s: float
    """Share of that time, divided among the calls that ran together (`r2_serve.engines.sharing`)."""


class Completion(Record):
    """One model's reply."""

    text: str
    others: tuple[str, ...] = ()
    """The texts of the further replies, where several were asked for (`Sampling.num_choices`)."""
    usage: Usage
    is_usage_estimated: bool = False
    """True if the model has not reported its own count."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each generated token; None if not asked or not available."""
    work: Work | None = None
    """Replica time used by this call; None for hosted models."""
    body: Json | None = None
    """The provider's reply as it came, for a pass-through. After a stream it holds `usage` alone."""


class Delta(Record):
    """A piece of a streamed reply. The last has `finish_reason` and `usage`; `usage` may come earlier too."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    is_usage_estimated: bool = False
    work: Work | None = None
    body: Json | None = None
    """The provider's chunk as it came, without id and usage, for a pass-through; `usage` in the last."""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes that the model has generated for this piece, tool calls and thoughts included."""
        choices = None if self.body is None else self.body.get("choices")
        if not isinstance(choices, list):
            return len(self.text.encode())
        return sum(_generated_bytes(choice.get("delta")) for choice in choices)


OnDelta = Callable[[Delta], Awaitable[None]]
"""Takes the next piece of the answer. It may wait, so a slow client slows the model."""
_NOT_GENERATED = frozenset({"role", "id", "type", "index"})


def _generated_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, dict):
        return sum(_generated_bytes(held) for key, held in value.items() if key not in _NOT_GENERATED)
    return sum(map(_generated_bytes, value)) if isinstance(value, list) else 0


class EngineCall(Record):
    """One request to one engine."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None
    """Name of the adapter that answers; None for the base model."""
    timeout_s: float | None = None
    """Seconds until the engine gives up with `EngineTimeout`; None for no limit."""
    trace_parent: str | None = None
    """Header `traceparent` for a provider; None for a query in no distributed trace."""
    is_verbatim: bool = False
    """Whether the client gets the reply as it came, be it a tool call or a refusal."""
    priority: Priority = "user"
    """Its rank among the calls of a busy engine on vLLM; other engines take calls as they come."""


class Engine(Protocol):
    """One model that answers calls. Implementations: `r2_serve.engines`."""

    async def generate(self, call: EngineCall) -> Completion:
        """The whole reply. Cancelling the task stops the generation.

        Raises: `EngineError` and its subclasses; nothing else.
        """
        ...

    def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The reply in pieces; the last `Delta` has `finish_reason` and `usage`. Closing it stops the
        generation.

        Raises: `EngineError` and its subclasses; nothing else.
        """
        ...


@runtime_checkable
class CountingEngine(Protocol):
    """An engine whose provider may count the tokens of a prompt."""

    async def count_tokens(self, call: EngineCall) -> int | None:
        """The count; None if the provider does not count. Raises: EngineError."""
        ...


class LocalEngine(Engine, Protocol):
    """An engine that runs its model in this process, with adapters that come and go while it serves."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Loads the adapter in the directory `path`; later calls may name it. The event loop stays free.

        Raises: ConfigError if the name is taken or the adapter cannot be loaded; then nothing has changed.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forgets the adapter. Raises: EngineRefused if the name is unknown."""
        ...

    async def check_health(self) -> None:
        """Raises: EngineUnavailable if the engine can answer no more calls."""
        ...

    async def aclose(self) -> None:
        """Stops the engine; calls that still run get EngineUnavailable."""
        ...
