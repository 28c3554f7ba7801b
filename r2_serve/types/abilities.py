"""What a model can do (`Ability`), and what a call needs of the model that answers it (`asks_of`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from r2_serve.types.calls import Json, Message, Sampling

Ability = Literal[
    "chat",
    "tools",
    "vision",
    "audio",
    "files",
    "json_object",
    "json_schema",
    "reasoning",
    "logprobs",
    "logit_bias",
    "choices",
    "completions",
    "embeddings",
    "messages_api",
    "responses_api",
]
"""`choices` is several replies to one prompt (`n`); `completions` goes on with a text (`/v1/completions`);
`messages_api` is what only Anthropic's Messages API can say, such as the tools that Anthropic runs, and
`responses_api` what only OpenAI's Responses API can say."""


class Need(NamedTuple):
    """Something that a call asks of its model."""

    param: str
    """Name of the parameter or of the part of a message, such as `messages.2.content.1`."""
    ability: Ability | None
    """None for a parameter that belongs to no ability: some engines read it by its name."""


LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Parameters of OpenAI's API that tell whose call it is, and which calls are alike."""
NO_EFFECT = LABELS | {"prompt_cache_options", "store"}
"""Parameters of OpenAI's API that cannot change the reply, so that every model can take them."""
READ_BY_ENGINES = ("seed", "stop")
"""Parameters that every local engine reads, and that some APIs of providers do not have."""
_DEFAULTS: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "tool_choice": ("none",),
    "function_call": ("none",),
    "tools": ([],),
    "functions": ([],),
    "verbosity": ("medium",),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0, 0.0)),
}
"""Values that state what happens anyway. A test for True or False is by identity, as True == 1."""
_PARAMETERS: dict[str, Ability] = {
    **dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"), "tools"),
    **dict.fromkeys(("logprobs", "top_logprobs"), "logprobs"),
    **dict.fromkeys(("reasoning_effort", "reasoning", "thinking"), "reasoning"),
    **dict.fromkeys(("audio", "modalities"), "audio"),
    "n": "choices",
    "logit_bias": "logit_bias",
}
_PARTS: dict[str, Ability] = {"image_url": "vision", "input_audio": "audio", "file": "files"}
_MESSAGE_KEYS: dict[str, Ability | Literal["chat"]] = {
    **dict.fromkeys(("tool_calls", "tool_call_id", "function_call"), "tools"),
    **dict.fromkeys(("name", "reasoning_content", "reasoning", "refusal"), "chat"),
    **dict.fromkeys(("reasoning_details", "thinking_blocks"), "chat"),
    "audio": "audio",
    "annotations": "chat",
    "cache_control": "chat",
}
"""Keys of a message beside role and content. Those that need no more than `chat` are read by the model's chat
template where it knows them, or are remarks on an earlier reply and thoughts that only their maker reads."""


def needs_of(messages: Sequence[Message], sampling: Sampling) -> Iterator[Need]:
    """What a call needs of its model: the kind of call, and what each parameter and part asks for."""
    yield Need("model", sampling.api)
    for name, value in sampling.forwarded.items():
        if name not in NO_EFFECT and not states_the_default(name, value):
            yield Need(name, _PARAMETERS.get(name))
    yield from (Need(name, "messages_api") for name in sampling.only_messages_api)
    if (wanted := sampling.response_format) is not None:
        yield Need("response_format", "json_object" if wanted.get("type") == "json_object" else "json_schema")
    for index, message in enumerate(messages):
        yield from _message_needs(f"messages.{index}", message)


def asks_of(messages: Sequence[Message], sampling: Sampling) -> Iterator[Need]:
    """`needs_of` a call, and what every engine of ours reads but not every provider's API can say."""
    yield from needs_of(messages, sampling)
    for name in READ_BY_ENGINES:
        if getattr(sampling, name) not in (None, ()):
            yield Need(name, None)


def states_the_default(name: str, value: object) -> bool:
    """Whether a parameter asks for nothing, or for what happens without it."""
    return value is None or any(
        type(value) is type(default) and value == default for default in _DEFAULTS.get(name, ())
    )


def _message_needs(place: str, message: Message) -> Iterator[Need]:
    if message.role in ("tool", "function"):
        yield Need(f"{place}.role", "tools")
    for key, value in message.more.items():
        ability = _MESSAGE_KEYS.get(key)
        if value and ability != "chat":
            yield Need(f"{place}.{key}", ability)
    for index, part in enumerate(message.content if isinstance(message.content, tuple) else ()):
        if (kind := _kind(part)) != "text":
            yield Need(f"{place}.content.{index}", _PARTS.get(kind))


def _kind(part: Json) -> str:
    return str(part.get("type", "text"))
