"""A conversation with the scripted model, in no dialect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


TEMPLATE_TOKENS = 8
"""Tokens of the chat template around a message or a call."""


@dataclass(frozen=True)
class Call:
    """A call of a tool of the client."""

    id: str
    name: str
    arguments: str
    """JSON; free text for a tool without a schema."""
    is_custom: bool = False
    """Whether the tool takes free text (`custom` in Responses)."""


@dataclass(frozen=True)
class Said:
    """One message, or one block of the system prompt."""

    role: str
    """system, user, assistant or tool."""
    text: str = ""
    images: tuple[str, ...] = ()
    """`MEDIA_TYPE of N bytes` for each image."""
    calls: tuple[Call, ...] = ()
    answers: str | None = None
    """Id of the call whose result this is."""
    thought: str | None = None
    """The model's own reasoning that came back, if it did."""
    signature: str | None = None
    is_marked: bool = False
    """Whether the prompt is to be cached up to here (`cache_control`)."""

    @property
    def tokens(self) -> int:
        said = len(self.text) + sum(len(call.arguments) + len(call.name) for call in self.calls)
        return said // 4 + 85 * len(self.images) + TEMPLATE_TOKENS


@dataclass(frozen=True)
class Asked:
    """What a request says."""

    dialect: str
    model: str
    said: tuple[Said, ...]
    tools: Json = field(default_factory=dict)
    """JSON schema of each tool's arguments by name; None for a tool that takes free text."""
    forced_tool: str | None = None
    schema: Json | None = None
    """JSON schema that the answer has to fit."""
    is_thinking: bool = False
    wants_thoughts_back: bool = False
    """Whether calls of tools have to come back with the reasoning before them."""

    @property
    def newest(self) -> tuple[Said, ...]:
        """The messages after the model's last one."""
        last = max((i for i, each in enumerate(self.said) if each.role == "assistant"), default=-1)
        return self.said[last + 1 :]


@dataclass(frozen=True)
class Usage:
    """Tokens; `prompt` counts those read from a cache and written to it, `reply` those of reasoning."""

    prompt: int
    cached_read: int
    cached_write: int
    reply: int
    reasoning: int


@dataclass(frozen=True)
class Answer:
    """What the model replies."""

    number: int
    """The replies are numbered, so that each has its own id."""
    usage: Usage
    text: str = ""
    calls: tuple[Call, ...] = ()
    thought: str = ""
    signature: str = ""


@dataclass(frozen=True)
class Refusal:
    """An error that the provider replies instead."""

    status: int
    message: str
    retry_after_s: int | None = None
