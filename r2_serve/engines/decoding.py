"""One `generate` batch, row by row: each row samples, streams and ends in its own way.

transformers' `generate` decodes a batch under one set of options. Here it always decodes greedily, and two
hooks make the rows independent: `RowSampler` (a logits processor) adds noise to the rows that sample, so that
their argmax is a draw; `RowStops` (a stopping criterion) hands every new token to the row's `Reply` and says
which rows are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from r2_serve.engines.grammar import Constraint
from r2_serve.engines.reply import Reply
from r2_serve.types import Sampling


@dataclass
class Row:
    """One row of a batch. The worker's thread calls `on_token` after each token of the unfinished reply."""

    prompt: list[int]
    sampling: Sampling
    reply: Reply
    on_token: Callable[[], None]
    is_cancelled: Callable[[], bool]
    constraint: Constraint | None = None
    """Which tokens may come next; None if all may."""
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


class RowSampler:
    """Logits processor. A sampled row's logits become log-probabilities plus Gumbel noise.

    The noise comes from the row's own generator, so that a seeded reply does not depend on the rest of the
    batch (up to float rounding). `chosen_logprobs` are the model's own, before penalties and noise.
    """

    def __init__(self, rows: Sequence[Row], num_prompt_positions: int) -> None:
        self._rows = rows
        self._num_prompt_positions = num_prompt_positions
        self._sampled = [i for i, row in enumerate(rows) if row.generator is not None]
        self._penalised = [
            i for i, row in enumerate(rows) if row.sampling.presence_penalty or row.sampling.frequency_penalty
        ]
        self._constrained = [i for i, row in enumerate(rows) if row.constraint is not None]
        self._wants_logprobs = any(row.sampling.logprobs for row in rows)
        self._logprobs: torch.Tensor | None = None
        self._temperatures = torch.tensor(
            [[rows[i].sampling.temperature or 1.0] for i in self._sampled], dtype=torch.float32
        )
        self._top_ps = torch.tensor(
            [[rows[i].sampling.top_p or 1.0] for i in self._sampled], dtype=torch.float32
        )

    def __call__(self, input_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """`input_ids` (B, T), `logits` (B, V); returns scores (B, V)."""
        if self._wants_logprobs:
            self._logprobs = torch.log_softmax(logits, dim=-1)
        scores = logits.clone() if self._sampled or self._penalised or self._constrained else logits
        for i in self._penalised:
            scores[i] -= self._penalty(
                self._rows[i].sampling, input_ids[i, self._num_prompt_positions :], logits.shape[-1]
            )
        for i in self._constrained:
            if (constraint := self._rows[i].constraint) is not None and not self._rows[i].is_done:
                constraint.apply(scores[i])
        if self._sampled:
            scores[self._sampled] = self._drawn(scores[self._sampled])
        return scores

    def chosen_logprobs(self, tokens: torch.Tensor) -> list[float] | None:
        """Natural log-probability of each row's new token (B,); None if no row asks."""
        if self._logprobs is None:
            return None
        chosen: list[float] = self._logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        return chosen

    def _drawn(self, logits: torch.Tensor) -> torch.Tensor:
        logprobs = torch.log_softmax(logits / self._temperatures.to(logits.device), dim=-1)
        if bool((self._top_ps < 1).any()):
            logprobs = _within_top_p(logprobs, self._top_ps.to(logits.device))
        # Loading a model may change the default type for a moment, so the type is given.
        noise = torch.empty(logprobs.shape, dtype=torch.float32)
        for row, i in zip(noise, self._sampled, strict=True):
            row.exponential_(generator=self._rows[i].generator)
        return logprobs - noise.clamp_min(1e-30).log().to(logits.device)

    @staticmethod
    def _penalty(sampling: Sampling, generated: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """OpenAI's penalty (V,): frequency times the count of each token, plus presence if it occurs."""
        counts = torch.bincount(generated, minlength=vocabulary)
        return (sampling.frequency_penalty or 0.0) * counts + (sampling.presence_penalty or 0.0) * (
            counts > 0
        )


def _within_top_p(logprobs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """(B, V) with all tokens outside the smallest set whose probability reaches `top_ps` (B, 1) at -inf."""
    ordered, positions = logprobs.sort(dim=-1, descending=True)
    probabilities = ordered.exp()
    is_outside = probabilities.cumsum(dim=-1) - probabilities >= top_ps
    return logprobs.masked_fill(is_outside.scatter(1, positions, is_outside), -torch.inf)


class RowStops:
    """Stopping criterion: passes each new token to its row, and returns which rows are done (B,)."""

    def __init__(self, rows: Sequence[Row], sampler: RowSampler) -> None:
        self._rows = rows
        self._sampler = sampler

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        tokens = input_ids[:, -1]
        logprobs = self._sampler.chosen_logprobs(tokens)
        for i, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True)):
            if row.is_done:
                continue
            if logprobs is not None and row.sampling.logprobs:
                row.reply.logprobs.append(logprobs[i])
            if row.constraint is not None:
                row.constraint.accept(token)
            row.reply.push(token)
            row.on_token()
        return torch.tensor([row.is_done for row in self._rows], device=input_ids.device)
