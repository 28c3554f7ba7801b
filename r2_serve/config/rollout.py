"""A candidate on trial: a changed virtual model that answers a share of the queries, seen or unseen."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

from pydantic import Field, JsonValue

from r2_serve.config.engines import Config
from r2_serve.types import Json


class MarginsConfig(Config):
    """How much worse a candidate may be and still count as no worse."""

    accuracy: float = Field(default=0.02, ge=0, le=1)
    """The score of feedback that may be lost, and the share of shadows that may give another answer. Two
    points are less than most users notice, and more than noise in some thousand queries."""
    failures: float = Field(default=0.01, ge=0, le=1)
    """The share of queries that may fail in addition."""
    fallbacks: float = Field(default=0.05, ge=0, le=1)
    """The share of plans and allocations in addition that may have to be replaced; they cost money, but the
    query is answered."""
    cost: float = Field(default=0.1, ge=0)
    """The share of the present cost of a query that may come on top."""
    seconds: float = Field(default=0.2, ge=0)
    """The share of the present time of a query that may come on top."""


class RolloutConfig(Config):
    """The trial of one candidate for one virtual model."""

    candidate: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """The candidate's name in traces, metrics and `r2-serve compare`: that of its adapter, as a rule. A new
    change needs a new name, as results are counted by it."""
    change: dict[str, JsonValue] = Field(min_length=1)
    """The fields of the virtual model that the candidate sets otherwise, such as
    {decomposer: {adapter: dec-0002}} or {policy: "one:small"}."""
    shadow: float = Field(default=0.0, ge=0, le=1)
    """The share of the present router's queries that the candidate answers too, after the client has its
    answer; no client sees its answer."""
    canary: float = Field(default=0.0, ge=0, le=1)
    """The share of clients' queries that the candidate answers."""
    unit: Literal["conversation", "key"] = "conversation"
    """What keeps its router: a conversation, or all queries of a client's key, where people compare notes."""
    budget_usd: Decimal = Field(default=Decimal(1), gt=0)
    """Most USD that the shadows of this candidate may cost. It is kept in `server.spend_file`, for all
    routers of a machine; without that file each router process counts from its own start."""
    max_shadows: int = Field(default=4, ge=1)
    """Shadows that one router process runs at once; more are left out, so that they take little from
    clients."""
    margins: MarginsConfig = MarginsConfig()
    """How much worse the candidate may be."""
    stops_itself: bool = True
    """Whether a router process ends the trial by itself once its own traces prove the candidate worse."""


def merged(fields: Json, change: Mapping[str, JsonValue]) -> Json:
    """`fields` with those of `change`; of a section, the fields that the change names alone."""
    found = dict(fields)
    for name, value in change.items():
        before = found.get(name)
        found[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found
