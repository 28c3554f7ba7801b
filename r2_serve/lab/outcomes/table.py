"""Makes the arrays of a book from its records."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from r2_serve.errors import BookError
from r2_serve.gates.features import (
    ANSWER_FEATURES,
    PROMPT_FEATURES,
    REPLY_FEATURES,
    answer_features,
    prompt_features,
    reply_features,
)
from r2_serve.gates.table import MISSING, NO_ANSWER, OutcomeTable
from r2_serve.lab.outcomes.book import Outcome

_UNREAD = 1_000_000
"""Numbers from here on are of answers that were judged and not read."""


def table_of(records: Iterable[Outcome]) -> OutcomeTable:
    """The table of all records of whole tasks; those without a verdict count as missing.

    Raises: BookError if there are none, or none is graded.
    """
    whole = [record for record in records if not record.step]
    tasks = {task: i for i, task in enumerate(dict.fromkeys(record.task for record in whole))}
    models = {model: i for i, model in enumerate(dict.fromkeys(record.model for record in whole))}
    if not whole or all(record.right is None for record in whole):
        raise BookError(
            "the book holds no graded reply to a whole task: grade it with r2-serve outcomes grade"
        )
    shape = len(tasks), len(models)
    prompts = [""] * len(tasks)
    groups, right, cost = np.full(shape, MISSING), np.zeros(shape, bool), np.zeros(shape)
    confidence, propensity = np.full(shape, np.nan), np.full(shape, np.nan)
    replies, answers = np.zeros((*shape, len(REPLY_FEATURES))), np.zeros((*shape, len(ANSWER_FEATURES)))
    for record in whole:
        at = tasks[record.task], models[record.model]
        prompts[at[0]] = prompts[at[0]] or record.prompt
        if record.right is None:
            continue
        groups[at] = _group(record, at[1])
        right[at], cost[at] = bool(record.right), float(record.cost_usd)
        confidence[at] = np.nan if record.confidence is None else record.confidence
        propensity[at] = np.nan if record.propensity is None else record.propensity
        replies[at] = reply_features(record.reply, record.confidence)
        answers[at] = answer_features(record.answer)
    return OutcomeTable(
        tasks=tuple(tasks),
        prompts=tuple(prompts),
        models=tuple(models),
        groups=groups,
        right=right,
        cost_usd=cost,
        confidence=confidence,
        propensity=propensity,
        replies=replies,
        answers=answers,
        asks=np.array([prompt_features(prompt) for prompt in prompts]).reshape(-1, len(PROMPT_FEATURES)),
    )


def _group(record: Outcome, model: int) -> int:
    """The number of the answer. One that was judged but not read is like no other: two right answers need not
    be equal, and what a judge thinks of them is not seen when a model answers."""
    if record.group is not None:
        return record.group
    return NO_ANSWER if record.gold is not None and not record.right else _UNREAD + model
