"""The last stage: make the answer from the answers of the subtasks, and say how sure the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r2_serve.calls.caller import CallResult
from r2_serve.types import FinishReason, Json, Plan, Sampling, substitute

CONFIDENCE_ALPHA = 0.4


@dataclass(frozen=True)
class Final:
    """The answer of a query."""

    text: str
    finish_reason: FinishReason
    confidence: float | None = None
    body: Json | None = None
    """The provider's reply as it came, for a pass-through to a hosted model."""

    @classmethod
    def of(cls, call: CallResult) -> Final:
        done = call.completion
        return cls(call.answer, done.finish_reason, confidence(done.logprobs), done.body)


def synthesize(plan: Plan, calls: Mapping[int, CallResult], sampling: Sampling) -> Final:
    """The plan's template filled in, or the answer of its last subtask; `calls` are by subtask id."""
    if plan.answer is None:
        return Final.of(calls[len(plan.subtasks)])
    joined = substitute(plan.answer, {i: call.answer for i, call in calls.items()})
    return Final(*cut_to_sampling(joined, sampling))


def confidence(logprobs: Sequence[float] | None, alpha: float = CONFIDENCE_ALPHA) -> float | None:
    """The alpha-quantile of the tokens' probabilities, in [0, 1]; None without log-probabilities.

    Source: the difficulty of a subtask in Division-of-Thoughts (arXiv 2502.04392), alpha = 0.4.
    """
    if not logprobs:
        return None
    ranked = sorted(math.exp(min(logprob, 0.0)) for logprob in logprobs)
    return ranked[int(alpha * (len(ranked) - 1))]


def cut_to_chars(answer: str, max_chars: int) -> str:
    """`answer`, cut with a mark if it is too long to be the input of another subtask."""
    return (
        answer
        if len(answer) <= max_chars
        else f"{answer[:max_chars]} [cut: {len(answer) - max_chars} more characters]"
    )


def cut_to_sampling(text: str, sampling: Sampling) -> tuple[str, FinishReason]:
    """A template's `text`, cut where the client's `stop` and `max_tokens` (words here) say."""
    for stop in sampling.stop:
        text = text.partition(stop)[0]
    words = text.split(" ")
    if sampling.max_tokens is not None and len(words) > sampling.max_tokens:
        return " ".join(words[: sampling.max_tokens]), "length"
    return text, "stop"
