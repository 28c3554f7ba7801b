"""The last stage: make the answer from the answers of the subtasks, and say how sure the model is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r2_serve.calls.caller import CallResult
from r2_serve.config import ROUTED_QUERY_CHARS, LimitsConfig
from r2_serve.types import REFERENCE, FinishReason, Json, Plan, Sampling, substitute, substituted_chars

CONFIDENCE_ALPHA = 0.4
CUT_MARK_CHARS = 40
"""Room for the mark of an answer that was cut."""


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


def synthesize(
    plan: Plan, calls: Mapping[int, CallResult], sampling: Sampling, limits: LimitsConfig
) -> Final:
    """The plan's template filled in, or the answer of its last subtask; `calls` are by subtask id.

    A template that would be too long is filled with parts of the answers, and says `length`.
    """
    if plan.answer is None:
        return Final.of(calls[len(plan.subtasks)])
    answers = {i: call.answer for i, call in calls.items()}
    shorter = bounded(plan.answer, answers, limits)
    text, reason = cut_to_sampling(substitute(plan.answer, shorter), sampling)
    return Final(text, reason if shorter == answers else "length")


def bounded(text: str, answers: Mapping[int, str], limits: LimitsConfig) -> Mapping[int, str]:
    """`answers`, each cut with a mark if `text` with all of them filled in would be too long.

    A few characters can refer to one long answer a thousand times. A text that uses each answer once is
    never too long. Nothing is refused, as the answers are paid for.
    """
    limit = max(limits.max_query_chars or ROUTED_QUERY_CHARS, len(text) + sum(map(len, answers.values())))
    if substituted_chars(text, answers) <= limit:
        return answers
    per_answer = (limit - len(text)) // max(1, len(REFERENCE.findall(text))) - CUT_MARK_CHARS
    return {i: cut_to_chars(answer, max(0, per_answer)) for i, answer in answers.items()}


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
