"""Failures in the middle of a run: a replica or a node dies at a time that the workload file says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from r2_serve.config import Config


class _Failure(Config):
    at_s: float = Field(ge=0)
    """Seconds from the start of the run."""


class ReplicaDies(_Failure):
    """The oldest running replica of a model's application dies, as by SIGKILL; nothing, if none runs."""

    kills: Literal["replica"]
    app: str


class NodeDies(_Failure):
    """The node with the most GPUs in use dies at once, with all that stands on it."""

    kills: Literal["node"]


Failure = Annotated[ReplicaDies | NodeDies, Field(discriminator="kills")]
