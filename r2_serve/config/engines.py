"""How a model is reached or run: one section for each kind of engine, and the base of every section."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from r2_serve.config.providers import ProviderName, with_provider


class Config(BaseModel):
    """Base of every section: frozen, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, values: object) -> object:
        """YAML reads `yes` as true, which pydantic would take for the number 1."""
        given = values if isinstance(values, dict) else {}
        wrong = [name for name, value in given.items() if isinstance(value, bool) and _is_number(cls, name)]
        if wrong:
            text = "must be a number, got true or false (YAML reads yes and no so, too)"
            error = PydanticCustomError("number", text)
            details = [InitErrorDetails(type=error, loc=(name,), input=given[name]) for name in wrong]
            raise ValidationError.from_exception_data(cls.__name__, details)
        return values


def _is_number(section: type[BaseModel], name: str) -> bool:
    field = section.model_fields.get(name)
    kinds = {field.annotation, *get_args(field.annotation)} if field else set()
    return bool(kinds & {int, float, Decimal}) and bool not in kinds


_CALLS = re.compile(
    r"(/openai/deployments/[^/]+)?/(chat/completions|completions|responses|embeddings|messages|models)/*$"
)


def _is_address(url: str) -> str:
    """A URL that can be logged: it holds no user, password or query, and no path of a single call."""
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


SAFE_LOAD_FORMATS = [
    "safetensors",
    "fastsafetensors",
    "instanttensor",
    "mistral",
    "runai_streamer",
    "runai_streamer_sharded",
    "sharded_state",
    "dummy",
]
"""Load formats of vLLM 0.29 that read safetensors or nothing; `auto` and `hf` fall back on pickles."""


def _runs_no_code(engine_kwargs: dict[str, object]) -> dict[str, object]:
    if engine_kwargs.get("trust_remote_code"):
        raise ValueError(
            "trust_remote_code would run code from the checkpoint: use an architecture that vLLM knows"
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
Adapters = dict[str, str]
"""Directory of each adapter, by name. Engines cache by name, so a new version needs a new name."""


class ServedEngineConfig(Config):
    """A local model served by another application of the same Ray Serve cluster."""

    kind: Literal["served"]
    app: str
    """Name of that application; its deployment is called `Model`."""
    runs: LocalEngineConfig | None = None
    """Engine of that application, which tells what the model can do. None: it is read from the application,
    if the same file has it or the cluster runs it; else the model counts as capable of everything."""


class HostedEngineConfig(Config):
    """A model behind a provider's API: OpenAI, Azure OpenAI, Anthropic, DeepSeek, Qwen, a vLLM server."""

    kind: Literal["openai", "azure", "anthropic", "openai-responses"]
    """What the provider speaks: `openai` is chat completions, `openai-responses` is Responses, `anthropic` is
    Messages. Responses keeps nothing at the provider (`store: false`) unless a client asks for it."""
    provider: ProviderName | None = None
    """A provider of `r2_serve.config.providers`, such as deepseek: it fills `kind`, `base_url` and
    `api_key_env` where they are not written. None: the address is written."""
    model: str
    """The provider's name of the model; on Azure, the name of the deployment. A card whose engine names a
    provider may leave it out if it is the card's own name."""
    base_url: Annotated[str, AfterValidator(_is_address)] = "https://api.openai.com/v1"
    """Address before `/chat/completions`, `/responses` or `/messages`: for kind `anthropic` by default
    https://api.anthropic.com/v1; on Azure, the resource's https://NAME.openai.azure.com."""
    api_key_env: EnvName | None = None
    """Environment variable that holds the key; None for a server that asks for none."""
    api_version: str | None = None
    """Version of Azure's API, such as 2024-10-21, which is needed there. None: Anthropic's is 2023-06-01."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of the reply limit in requests. OpenAI's reasoning models do not read `max_tokens`."""
    extra_body: dict[str, object] = {}
    """Fields sent with every request as they are, such as a provider's own switches."""

    @model_validator(mode="before")
    @classmethod
    def _address_of_the_kind(cls, values: object) -> object:
        values = with_provider(values)
        if isinstance(values, dict) and values.get("kind") == "anthropic":
            return {"base_url": "https://api.anthropic.com/v1", **values}
        return values


class NumpyEngineConfig(Config):
    """A small Qwen2 or Llama checkpoint in plain numpy, without torch: the shipped models run on it."""

    kind: Literal["numpy"]
    path: str
    """`embedded:NAME` for a shipped model, or a directory."""
    max_batch_size: int = Field(default=64, ge=1)
    """Replies decoded at once; more calls wait in the engine. 64 is the server's `max_running`."""
    adapters: Adapters = {}
    """Whole checkpoints loaded at the start. `user_config` changes them live."""


class TransformersEngineConfig(Config):
    """A checkpoint run in the process by transformers: for larger models on a machine without GPU."""

    kind: Literal["transformers"]
    path: str
    """`embedded:NAME` for a shipped model, a directory, or a hub name."""
    device: str = "cpu"
    """Device of torch, such as `cpu` or `cuda:0`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory. CPUs compute fastest in float32."""
    max_batch_size: int = Field(default=64, ge=1)
    """Replies decoded at once; more calls wait in the engine. 64 is the server's `max_running`."""
    num_threads: int = Field(default=1, ge=1)
    """Threads of torch. One thread per model shares a small machine best."""
    adapters: Adapters = {}
    """LoRA adapters or whole checkpoints loaded at the start. `user_config` changes them live."""


class VllmEngineConfig(Config):
    """A checkpoint run by vLLM's AsyncLLM in the replica."""

    kind: Literal["vllm"]
    model: str
    """`embedded:NAME` for a shipped model, a directory, or a hub name."""
    engine_kwargs: Annotated[dict[str, object], AfterValidator(_runs_no_code)] = {}
    """Passed to vLLM's `AsyncEngineArgs` as it is; what would run code from a checkpoint is refused."""
    tool_parser: str | None = None
    """vLLM's name of the parser that finds tool calls in replies, such as hermes (Qwen 2.5), llama3_json or
    mistral. None: the model takes no tools. Its chat template must render tools."""
    reasoning_parser: str | None = None
    """vLLM's name of the parser that keeps thoughts apart from the answer, such as qwen3 or deepseek_r1."""
    chat_template_kwargs: dict[str, object] = {}
    """Switches of the chat template for calls that name none, such as {enable_thinking: false} (Qwen3)."""
    sleep_after_s: float | None = Field(default=None, gt=0)
    """Seconds without a call after which the weights leave the GPU for the host's memory. The next call waits
    until they are back. None: they stay, as on CPUs, where vLLM has no sleep."""
    adapters: Adapters = {}
    """LoRA adapters loaded at the start. `user_config` changes them live."""


class EmbeddingsEngineConfig(Config):
    """A model of sentence embeddings, run in the process by sentence-transformers; it serves no chat."""

    kind: Literal["sentence-embeddings"]
    path: str
    """A directory, or a hub name such as sentence-transformers/all-MiniLM-L6-v2."""
    device: str = "cpu"
    """Device of torch, such as `cpu` or `cuda:0`."""
    max_batch_size: int = Field(default=32, ge=1)
    """Inputs computed at once; 32 is the library's default."""
    num_threads: int = Field(default=1, ge=1)
    """Threads of torch. One thread per model shares a small machine best."""
    cuts_inputs: bool = False
    """Whether an input that is longer than the model reads is cut; if not, it is refused."""
    adapters: Annotated[Adapters, Field(max_length=0)] = {}
    """None: such a model takes no adapters."""


class SpeedConfig(Config):
    """How fast a replica of a model is, for the scripted engine and the simulator."""

    start_s: float = Field(default=0.0, ge=0)
    """Seconds from the start of the replica's process to its first request: loading and warming up."""
    prefill_tokens_per_s: float = Field(gt=0)
    """Prompt tokens read in a second, in a batch of any size. They set the time to the first token."""
    decode_tokens_per_s: float = Field(gt=0)
    """Reply tokens written in a second by a sequence that is alone in its batch."""
    max_batch_size: int = Field(default=64, ge=1)
    """Sequences decoded at once; more wait in the engine, first come, first served."""
    batch_slowdown: float = Field(default=0.0, ge=0)
    """A decoding step of b sequences takes 1 + batch_slowdown * (b - 1) times as long as a step of one."""


class ScriptedEngineConfig(Config):
    """The shipped fake for dry runs, experiments and tests: replies from a list, at a set pace."""

    kind: Literal["scripted"]
    replies: tuple[str, ...] = ("ok",)
    """Replies given in turn, again from the first after the last. Four marks are filled in.
    `{prompt}`: the last message. `{words}`: as many words as the last "N words" in it asks for.
    `{json:KEY}`: KEY in the first JSON object in it that has KEY. `{asked}`: the first JSON object in it
    with the keys of the JSON schema asked for, else `{words}`; so one model can serve every stage."""
    delay_s: float = Field(default=0.0, ge=0)
    """Seconds that a call takes; a streamed reply spreads them over its words."""
    speed: SpeedConfig | None = None
    """Used in place of `delay_s`: calls take as long as their words and the batch they share ask for."""
    dies_on: str | None = Field(default=None, min_length=1)
    """Text in a prompt that kills the process, as a fault in native code would, to test the recovery."""
    adapters: Adapters = {}
    """Adapters that calls may name. `{adapter}` in a reply stands for the name given, or `base`."""

    @model_validator(mode="after")
    def _one_pace(self) -> Self:
        if self.speed is not None and self.delay_s:
            raise ValueError("delay_s and speed are two ways to say how long a call takes: give one")
        return self


class RecordedEngineConfig(Config):
    """The replies that a model gave before, from a book of outcomes: the server runs without any model."""

    kind: Literal["recorded"]
    book: str
    """A book that `r2-serve outcomes import` made; `.gz` is read too."""
    model: str
    """The model of the book whose replies are given."""
    delay_s: float = Field(default=0.0, ge=0)
    """Seconds that a call takes."""
    adapters: Annotated[Adapters, Field(max_length=0)] = {}
    """None: a recorded model takes no adapters."""


LocalEngines = (
    NumpyEngineConfig
    | TransformersEngineConfig
    | VllmEngineConfig
    | EmbeddingsEngineConfig
    | ScriptedEngineConfig
    | RecordedEngineConfig
)
EngineConfig = Annotated[ServedEngineConfig | HostedEngineConfig | LocalEngines, Field(discriminator="kind")]
LocalEngineConfig = Annotated[LocalEngines, Field(discriminator="kind")]
ServedEngineConfig.model_rebuild()
