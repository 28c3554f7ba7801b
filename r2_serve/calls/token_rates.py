"""How many tokens the prompts of a model have, learned from the usage that it reports.

A prompt is counted by its characters first (`r2_serve.calls.estimates`), and the count is multiplied by a
factor. The factor is learned per model, as tokenizers differ, in each process by itself, and it is not kept:
a new process starts with 1, which suits ordinary text of any tokenizer.
"""

from __future__ import annotations

import statistics
from collections import deque

NUM_KEPT = 256
"""Latest prompts that are remembered, so that the factor follows a change of traffic within minutes."""
MIN_KNOWN = 16
"""Prompts after which the factor is used."""
MIN_TOKENS = 200
"""Shorter prompts are not learned from: the tokens of the chat template would outweigh the text."""
QUANTILE = 0.98
MARGIN = 1.15
"""What is added to the quantile, for prompts unlike the latest ones."""
LOWEST, HIGHEST = 0.5, 2.0
"""Limits of the factor. The lowest bounds how far a prompt unlike all others can cost more than its
reservation: five characters a token are reserved, and a token has one byte at least."""


class TokenRate:
    """What is known of one model's tokens. It lives on one event loop and needs no lock."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=NUM_KEPT)
        self._factors: tuple[float, float] | None = None

    def learn(self, counted: int, reported: int) -> None:
        """A prompt that counts `counted` tokens by its characters had `reported` tokens."""
        if counted >= MIN_TOKENS and reported > 0:
            self._latest.append(reported / counted)
            self._factors = None

    @property
    def most(self) -> float:
        """What to multiply a count by, so that hardly any prompt has more tokens."""
        return self._learned()[0]

    @property
    def likely(self) -> float | None:
        """What to multiply a count by, so that it is right for a usual prompt; None if it is not known."""
        return self._learned()[1] if len(self._latest) >= MIN_KNOWN else None

    def _learned(self) -> tuple[float, float]:
        if len(self._latest) < MIN_KNOWN:
            return 1.0, 1.0
        if self._factors is None:
            ranked = sorted(self._latest)
            high = ranked[min(int(QUANTILE * len(ranked)), len(ranked) - 1)] * MARGIN
            self._factors = min(max(high, LOWEST), HIGHEST), statistics.median_low(ranked)
        return self._factors
