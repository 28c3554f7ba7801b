"""Rows that decode together, each in its own way: it samples, keeps to its grammar and ends by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from r2_serve.engines.grammar import Constraint
from r2_serve.engines.reply import Reply
from r2_serve.errors import EngineError
from r2_serve.types import Sampling


@dataclass(eq=False)
class Row:
    """One reply in the making. The worker's thread calls `on_token` after each of its tokens."""

    prompt: list[int]
    sampling: Sampling
    reply: Reply
    on_token: Callable[[], None]
    fail: Callable[[EngineError], None]
    is_cancelled: Callable[[], bool]
    constraint: Constraint | None = None
    """Which tokens may come next; None if all may."""
    generated: list[int] = field(default_factory=list, init=False)
    generator: torch.Generator | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.sampling.temperature:
            self.generator = torch.Generator()
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed % 2**63)

    @property
    def is_done(self) -> bool:
        return self.reply.finish_reason is not None or self.is_cancelled()

    def push(self, token: int, logprob: float | None) -> None:
        """Takes the next token, with its log-probability by the model alone."""
        self.generated.append(token)
        if logprob is not None and self.sampling.logprobs:
            self.reply.logprobs.append(logprob)
        if self.constraint is not None:
            self.constraint.accept(token)
        self.reply.push(token)
        self.on_token()


def choose(rows: Sequence[Row], logits: torch.Tensor) -> tuple[list[int], Sequence[float | None]]:
    """The next token of each row by its logits (B, V), and the model's own log-probability if one row asks.

    A row with a temperature draws by the Gumbel-max trick from its own generator, so that a seeded reply does
    not depend on the rest of the batch (up to float rounding).
    """
    scores = logits.clone()
    for i, row in enumerate(rows):
        if row.sampling.presence_penalty or row.sampling.frequency_penalty:
            scores[i] -= _penalty(row, logits.shape[-1]).to(logits.device)
        if row.constraint is not None and not row.is_done:
            row.constraint.apply(scores[i])
    if sampled := [i for i, row in enumerate(rows) if row.generator is not None]:
        scores[sampled] = _drawn([rows[i] for i in sampled], scores[sampled])
    tokens = scores.argmax(dim=-1)
    ids: list[int] = tokens.tolist()
    if not any(row.sampling.logprobs for row in rows):
        return ids, [None] * len(rows)
    return ids, torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0].tolist()


def _penalty(row: Row, vocabulary: int) -> torch.Tensor:
    """OpenAI's penalty (V,): frequency times the count of each token, plus presence if it occurs."""
    counts = torch.bincount(torch.tensor(row.generated, dtype=torch.long), minlength=vocabulary)
    frequency, presence = row.sampling.frequency_penalty or 0.0, row.sampling.presence_penalty or 0.0
    return frequency * counts + presence * (counts > 0)


def _drawn(rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
    """Scores (B, V) whose argmax is a draw: log-probabilities plus Gumbel noise."""
    # Loading a model may change the default type for a moment, so the types are given.
    temperatures = torch.tensor([[row.sampling.temperature] for row in rows], dtype=torch.float32)
    top_ps = torch.tensor([[row.sampling.top_p or 1.0] for row in rows], dtype=torch.float32)
    logprobs = torch.log_softmax(logits / temperatures.to(logits.device), dim=-1)
    if bool((top_ps < 1).any()):
        logprobs = _within_top_p(logprobs, top_ps.to(logits.device))
    noise = torch.empty(logprobs.shape, dtype=torch.float32)
    for drawn, row in zip(noise, rows, strict=True):
        drawn.exponential_(generator=row.generator)
    return logprobs - noise.clamp_min(1e-30).log().to(logits.device)


def _within_top_p(logprobs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """(B, V) with all tokens outside the smallest set whose probability reaches `top_ps` (B, 1) at -inf."""
    ordered, positions = logprobs.sort(dim=-1, descending=True)
    probabilities = ordered.exp()
    is_outside = probabilities.cumsum(dim=-1) - probabilities >= top_ps
    return logprobs.masked_fill(is_outside.scatter(1, positions, is_outside), -torch.inf)
