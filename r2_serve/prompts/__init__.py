"""Codecs: each renders a prompt, parses its reply, and formats the target text that trains it.

`parse(format(x, query), query) == x` holds for plans and for allocations (property tests). A model's card
names its codec; those of the decomposer, the allocator and each worker may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from r2_serve.config import Prompts
from r2_serve.prompts.chains import ChainsCodec
from r2_serve.prompts.compact import CompactCodec
from r2_serve.prompts.instruct import InstructCodec
from r2_serve.types import Allocation, Message, ModelCard, Plan, Subtask


class Codec(Protocol):
    """One dialect of prompts and replies. Pure functions of text."""

    name: str
    version: int
    """Number that grows with each change of a prompt or format. Adapters of another version are refused."""
    is_streamable: bool
    """Whether the reply's text is the answer unchanged, so that its pieces may be shown as they come."""

    takes_conversations: bool
    """Whether its models answer a conversation as it is; False if they know the texts of steps alone."""

    def with_prompts(self, prompts: Prompts | None) -> Codec:
        """The codec with these texts in place of the built-in ones, if its dialect has texts."""
        ...

    def render_decompose(
        self, messages: Sequence[Message], max_subtasks: int, pool: Sequence[ModelCard] = ()
    ) -> list[Message]:
        """The prompt for a plan of the client's conversation; with `pool`, each step is given a model."""
        ...

    def plan_schema(self, max_subtasks: int, pool: Sequence[ModelCard] = ()) -> dict[str, object] | None: ...

    def format_plan(self, plan: Plan, query: str) -> str:
        """The reply that `parse_plan` reads as `plan`; it may refer to the query's numbers by position."""
        ...

    def parse_plan(self, text: str, query: str) -> Plan:
        """Raises: CodecError."""
        ...

    def format_allocated(
        self, plan: Plan, allocation: Allocation, query: str, pool: Sequence[ModelCard]
    ) -> str:
        """The reply that `parse_allocated` reads as this plan with these models."""
        ...

    def parse_allocated(self, text: str, query: str, pool: Sequence[ModelCard]) -> tuple[Plan, Allocation]:
        """The plan and the models of its steps, from one reply. Raises: CodecError."""
        ...

    def render_allocate(
        self, messages: Sequence[Message], plan: Plan, pool: Sequence[ModelCard]
    ) -> list[Message]:
        """The prompt for the models of a plan; without `messages` the plan alone is judged."""
        ...

    def allocation_schema(self, plan: Plan, pool: Sequence[ModelCard]) -> dict[str, object] | None: ...

    def allocation_words(self, plan: Plan, pool: Sequence[ModelCard]) -> tuple[tuple[str, ...], ...]:
        """The words that each step's place in the reply may have; empty if the reply is no list of words."""
        ...

    def format_allocation(self, allocation: Allocation, plan: Plan, pool: Sequence[ModelCard]) -> str: ...

    def parse_allocation(self, text: str, plan: Plan, pool: Sequence[ModelCard]) -> Allocation:
        """Raises: CodecError."""
        ...

    def render_subtask(
        self, messages: Sequence[Message], plan: Plan, subtask: Subtask, answers: Mapping[int, str]
    ) -> list[Message]:
        """The prompt of one subtask, from the client's conversation and the answers it depends on.

        `messages` may be only a part of the conversation, where the step needs no more.
        """
        ...

    def render_query(self, messages: Sequence[Message]) -> list[Message]:
        """The prompt of a whole query to one model (pass-through, one-step plans)."""
        ...

    def parse_answer(self, text: str) -> str: ...


_CODECS: dict[str, Codec] = {
    "instruct": InstructCodec(),
    "compact": CompactCodec(),
    "compact-chains": ChainsCodec(),
}


def get_codec(name: str) -> Codec:
    """The codec of that name; `ModelCard.codec` allows no other names."""
    return _CODECS[name]
