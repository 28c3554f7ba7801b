"""Bounds of one request, and rests of models that fail."""

from __future__ import annotations

from decimal import Decimal

from pydantic import Field

from r2_serve.config.engines import Config


class CooldownConfig(Config):
    """When a model that keeps failing is passed over in favour of its fallbacks, and for how long."""

    after_failures: int = Field(default=3, ge=1)
    """Failures in a row before a rest: no answer, 429, 5xx, a broken reply. Refusals do not count."""
    first_s: float = Field(default=10.0, ge=0)
    """Seconds of the first rest; each one after it is twice as long until a call is answered. 0: no rests."""
    longest_s: float = Field(default=300.0, gt=0)
    """Longest rest in seconds, also if the provider asks for more (Retry-After)."""


class LimitsConfig(Config):
    """Bounds of one request, checked before any call is made for it. A request may only lower them."""

    deadline_s: float = Field(default=120.0, gt=0)
    """Seconds for the whole request, its wait in the queue included."""
    max_cost_usd: Decimal | None = Field(default=None, gt=0)
    """Most USD that all calls of a request may cost together; None for no limit."""
    max_calls: int = Field(default=64, ge=1)
    """Most model calls of a request: 16 subtasks with retries and fallbacks."""
    max_total_tokens: int = Field(default=2_000_000, ge=1)
    """Most tokens of all calls together, prompts and replies."""
    max_subtasks: int = Field(default=16, ge=1, le=256)
    """Most steps of a plan."""
    max_depth: int = Field(default=12, ge=1)
    """Longest chain of steps that wait for each other."""
    max_parallel: int = Field(default=16, ge=1)
    """Most subtasks of one plan in progress at once."""
    max_subtask_chars: int = Field(default=4_000, ge=1)
    """Longest text of a step, and longest answer template, in characters."""
    max_messages: int = Field(default=10_000, ge=1)
    """Most messages of a request."""
    max_query_chars: int | None = Field(default=None, ge=1)
    """Most characters of all messages and the schema together, and of a step with answers filled in.
    None: as many as the longest context may hold that may read them; 200,000 for a step with answers."""
    max_tokens: int = Field(default=131_072, ge=1)
    """Longest reply that a request may ask for, in tokens."""
    max_answer_chars: int = Field(default=20_000, ge=1)
    """Longest part of an answer that other subtasks get to read; the rest is cut off, with a mark."""
    max_attempts: int = Field(default=2, ge=1, le=10)
    """Tries of one call on one model, before its fallbacks are asked."""
    cooldown: CooldownConfig = CooldownConfig()
    """Rests of failing models; each process that calls models keeps its own."""
