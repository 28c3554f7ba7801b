"""The last stage: the answer's text out of the subtasks' answers, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r2_serve.calls.caller import CallResult
from r2_serve.types import FinishReason, Plan, Sampling, substitute

CONFIDENCE_ALPHA = 0.4


@dataclass(frozen=True)
class Final:
    """The answer's text, however it was made."""

    text: str
    finish_reason: FinishReason
    confidence: float | None = None

    @classmethod
    def of(cls, call: CallResult) -> Final:
        return cls(call.answer, call.completion.finish_reason, confidence(call.completion.logprobs))


def synthesize(plan: Plan, calls: Mapping[int, CallResult], sampling: Sampling) -> Final:
    """The plan's template filled in, or the answer of its last subtask. `calls` by subtask id."""
    if plan.answer is None:
        return Final.of(calls[len(plan.subtasks)])
    joined = substitute(plan.answer, {i: call.answer for i, call in calls.items()})
    return Final(*cut_to_sampling(joined, sampling))


def confidence(logprobs: Sequence[float] | None, alpha: float = CONFIDENCE_ALPHA) -> float | None:
    """alpha-quantile of the tokens' probabilities, in [0, 1]; None where there are none.

    Source: the difficulty of a subtask in Division-of-Thoughts (arXiv 2502.04392), alpha = 0.4.
    """
    if not logprobs:
        return None
    ranked = sorted(math.exp(min(logprob, 0.0)) for logprob in logprobs)
    return ranked[int(alpha * (len(ranked) - 1))]


def cut_to_chars(answer: str, max_chars: int) -> str:
    """The beginning of an answer that is too long to be another subtask's input."""
    return (
        answer
        if len(answer) <= max_chars
        else f"{answer[:max_chars]} [cut: {len(answer) - max_chars} more characters]"
    )


def cut_to_sampling(text: str, sampling: Sampling) -> tuple[str, FinishReason]:
    """An answer made by a template, cut where the client's `stop` and `max_tokens` (here: words) would have cut a model's."""
    for stop in sampling.stop:
        text = text.partition(stop)[0]
    words = text.split(" ")
    if sampling.max_tokens is not None and len(words) > sampling.max_tokens:
        return " ".join(words[: sampling.max_tokens]), "length"
    return text, "stop"
