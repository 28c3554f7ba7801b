"""Conversations for models whose chat template has no system role, such as Gemma's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2_serve.types import Message

INSTRUCTION_ROLES = frozenset({"system", "developer"})
_REFUSAL = re.compile(
    r"\b(system|developer)\b.{0,80}\b(roles?|messages?|prompts?|instructions?)\b"
    r"|\broles?\b.{0,80}\b(system|developer|alternate)\b",
    re.IGNORECASE | re.DOTALL,
)


def has_instructions(messages: Sequence[Message]) -> bool:
    """Whether a message has the system or developer role."""
    return any(message.role in INSTRUCTION_ROLES for message in messages)


def with_system_role(messages: Sequence[Message]) -> list[Message]:
    """The conversation with `developer` messages as `system`, the name that chat templates know."""
    return [m.model_copy(update={"role": "system"}) if m.role == "developer" else m for m in messages]


def is_role_refusal(message: str) -> bool:
    """Whether a provider's error says that it takes no system or developer role."""
    return _REFUSAL.search(message) is not None


def without_instruction_roles(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its instructions at the start of the first user message.

    Neighbours of the same role become one message: such templates often want the roles to alternate.
    """
    instructions = [message.text for message in messages if message.role in INSTRUCTION_ROLES]
    merged = [Message(role="user", content="\n\n".join(instructions))] if instructions else []
    for message in messages:
        if message.role in INSTRUCTION_ROLES:
            continue
        if merged and merged[-1].role == message.role and merged[-1].is_plain and message.is_plain:
            both = f"{merged[-1].text}\n\n{message.text}"
            merged[-1] = Message(role=message.role, content=both)
        else:
            merged.append(message)
    return merged
