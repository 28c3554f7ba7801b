"""Gates of a virtual model: actions that take the place of a model in policies, allocations and requests."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from r2_serve.config.engines import Config
from r2_serve.types.gates import MOST_ASKED, Evidence, GateSpec


class GateConfig(Config):
    """A gate by rules (`ask` and `accept`), or a fitted one (`file`)."""

    ask: tuple[str, ...] = Field(default=(), max_length=MOST_ASKED)
    """Models of the pool in the order in which they are asked, usually the cheapest first. The answer of the
    last one needs no evidence."""
    accept: tuple[Evidence, ...] = ()
    """Evidence of which one kind is enough: `agreement`, `confidence`, `checker` or `check`."""
    file: str | None = None
    """A gate that `r2-train fit` wrote: JSON, at a path that every router process can read. It is read when
    the routing changes, so a new fit gets a new path; `r2-serve publish` writes it here."""
    earlier: tuple[str, ...] = ()
    """Files that were used before, the latest last, to which `r2-serve rollback --gate` goes back."""
    description: str = ""
    """One line on what the gate is good at, shown to an instruct allocator."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if (self.file is None) == (not self.ask and not self.accept):
            raise ValueError(
                "a gate has either `file`, or `ask` and `accept`: a fitted one has its own models and rules"
            )
        if self.file is None:
            _ = self.rules
        return self

    @property
    def rules(self) -> GateSpec:
        """The gate's own rules. Raises: ValueError for a fitted gate."""
        return GateSpec(ask=self.ask, accept=self.accept)


class FittedCheck(Config):
    """`args` of the short-lived application that has every router replica read a fitted file."""

    app: str
    """The router's application."""
    gate: str | None
    """The gate that the file is for; None for `plan_file`."""
    file: str
    pool: tuple[str, ...]
    """The models that the gate may ask."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for all replicas together."""
