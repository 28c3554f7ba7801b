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
from r2_serve.gates.table import MISSING, NO_ANSWER, Bools, Ints, OutcomeTable
from r2_serve.lab.outcomes.book import Outcome


def table_of(records: Iterable[Outcome]) -> OutcomeTable:
    """The table of all records of whole tasks. Raises: BookError if there are none, or none is graded."""
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
        groups[at] = NO_ANSWER if record.group is None else record.group
        right[at], cost[at] = bool(record.right), float(record.cost_usd)
        confidence[at] = np.nan if record.confidence is None else record.confidence
        propensity[at] = np.nan if record.propensity is None else record.propensity
        replies[at] = reply_features(record.reply, record.confidence)
        answers[at] = answer_features(record.answer)
    return OutcomeTable(
        tasks=tuple(tasks),
        prompts=tuple(prompts),
        models=tuple(models),
        groups=_with_right_groups(groups, right),
        right=right,
        cost_usd=cost,
        confidence=confidence,
        propensity=propensity,
        replies=replies,
        answers=answers,
        asks=np.array([prompt_features(prompt) for prompt in prompts]).reshape(-1, len(PROMPT_FEATURES)),
    )


def _with_right_groups(groups: Ints, right: Bools) -> Ints:
    """All right answers of a task in one group, also where the file gave a verdict and no answer."""
    return np.where(right, 0, np.where((groups == 0) & ~right, NO_ANSWER, groups))
