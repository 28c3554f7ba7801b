"""Trials in the config file: a candidate enters, is promoted, or is taken out. Each is one change of the
router's `user_config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from r2_serve.config import RolloutConfig
from r2_serve.errors import ConfigError
from r2_serve.ops.publishing.config_file import Change, changed, with_fields, with_rollout
from r2_serve.serve_config.document import YamlMapping


@dataclass(frozen=True)
class TrialShares:
    """How a candidate is tried."""

    shadow: float = 0.0
    canary: float = 0.0
    budget_usd: Decimal | None = None
    """Most USD that its shadows may cost; None for the default, or what the file says already."""

    margins: Mapping[str, float] = field(default_factory=dict)
    """How much worse the candidate may be, where that is not the default."""

    def __str__(self) -> str:
        return f"shadow {100 * self.shadow:g} %, canary {100 * self.canary:g} %"

    def rollout(self, candidate: str, change: YamlMapping, present: RolloutConfig | None) -> YamlMapping:
        """The entry of `rollouts`. Settings of the candidate's present trial stay."""
        is_same = present is not None and present.candidate == candidate
        known = present.model_dump(mode="json", exclude_unset=True) if is_same and present else {}
        budget = {} if self.budget_usd is None else {"budget_usd": f"{self.budget_usd:f}"}
        shares = {"shadow": self.shadow, "canary": self.canary}
        before = known.get("margins")
        margins = {**(before if isinstance(before, dict) else {}), **self.margins}
        entry = {**known, "candidate": candidate, "change": change, **shares, **budget}
        return {**entry, "margins": margins} if margins else entry


@dataclass(frozen=True)
class EndOfTrial:
    """A candidate that becomes the present router, or leaves."""

    action: Literal["promoted", "withdrawn"]
    router_app: str
    candidates: dict[str, str]
    """The candidate by virtual model."""
    routed: str
    """The next text of the config file."""


def plan_end(
    text: str,
    action: Literal["promoted", "withdrawn"],
    router_app: str,
    rollouts: dict[str, RolloutConfig],
    virtual_models: Sequence[str] = (),
) -> EndOfTrial:
    """The end of the trials of `virtual_models`, or of all. Raises: ConfigError if there is none."""
    names = virtual_models or tuple(rollouts)
    missing = [name for name in names if name not in rollouts]
    if missing or not names:
        about = f"of {', '.join(missing)}" if missing else "in the file"
        raise ConfigError(f"no candidate {about} is on trial: `r2-serve publish --shadow 0.05` begins one")
    changes: list[Change] = []
    for name in names:
        if action == "promoted":
            changes.append(with_fields(router_app, name, dict(rollouts[name].change)))
        changes.append(with_rollout(router_app, name, None))
    candidates = {name: rollouts[name].candidate for name in names}
    return EndOfTrial(action, router_app, candidates, changed(text, *changes))
