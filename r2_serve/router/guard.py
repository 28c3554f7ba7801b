"""Ends trials of candidates that are worse, in each router process, by the traces that it makes itself.

It is the brake, and not the verdict: it keeps running sums alone, looks after each query, and asks for more
certainty than `r2-serve compare`, because it looks so often.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field

from r2_serve.config import RolloutConfig
from r2_serve.router.trial_evidence import (
    SHARES,
    Comparison,
    Metric,
    Moments,
    compared,
    is_evidence,
    values_of,
)
from r2_serve.types import Arm, Trace

log = logging.getLogger(__name__)
CONFIDENCE = 0.9999
"""The confidence of each look: with thousands of looks, one candidate in a hundred may be stopped wrongly."""
MARGINS: dict[Metric, str] = {"score": "accuracy"}
"""The margin of each metric that has not its own name."""

Trial = tuple[str, str]
"""A virtual model and its candidate."""


@dataclass
class Guard:
    """What the trials of this process have shown so far."""

    stopped: dict[Trial, str] = field(default_factory=dict)
    """Why each trial was ended."""
    _moments: dict[tuple[str, str, Arm, Metric], Moments] = field(
        default_factory=lambda: defaultdict(Moments), repr=False
    )

    def observe(self, trace: Trace, rollout: RolloutConfig) -> None:
        """Count one query of a trial, and end the trial if it proves the candidate worse.

        Shadows are compared with the queries of the incumbent, as canaries are.
        """
        note = trace.rollout
        if note is None or note.candidate != rollout.candidate or not is_evidence(trace):
            return
        model = trace.model
        for metric, value in values_of(trace).items():
            self._add(model, note.candidate, note.arm, metric, value, rollout)

    def rate(self, model: str, candidate: str, arm: Arm, score: float, rollout: RolloutConfig) -> None:
        """Count the score of one answer."""
        self._add(model, candidate, arm, "score", score, rollout)

    def _add(
        self, model: str, candidate: str, arm: Arm, metric: Metric, value: float, rollout: RolloutConfig
    ) -> None:
        self._moments[model, candidate, arm, metric].add(value)
        if rollout.stops_itself and arm != "incumbent":
            self._judge(model, candidate, arm, metric, rollout)

    def _judge(self, model: str, candidate: str, arm: Arm, metric: Metric, rollout: RolloutConfig) -> None:
        before, new = (
            self._moments[model, candidate, each, metric].estimate(is_share=metric in SHARES)
            for each in ("incumbent", arm)
        )
        margin = getattr(rollout.margins, MARGINS.get(metric, metric))
        found = compared(metric, before, new, margin, CONFIDENCE)
        if found.verdict == "worse" and (model, candidate) not in self.stopped:
            self.stopped[model, candidate] = _said(found, arm)
            log.error(
                "trial of candidate %s for %s ended in this process: %s; `r2-serve rollback --candidate` "
                "takes it out of the config",
                *(candidate, model, self.stopped[model, candidate]),
            )


def _said(found: Comparison, arm: Arm) -> str:
    low, high = found.interval
    return (
        f"{found.metric} of its {arm} queries differs by {found.difference:+.4g} "
        f"({low:+.4g} to {high:+.4g}), beyond the margin of {found.margin:g}"
    )
