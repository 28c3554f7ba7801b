"""Every reply of a model to a prompt, asked once, with its tokens and two measures of its confidence."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from r2_serve.errors import EngineRefused
from r2_serve.router.synthesis import confidence
from r2_serve.types import Engine, EngineCall, Message, Sampling

T = TypeVar("T")
QUANTILE = 0.4
"""The quantile of the probabilities of a reply's tokens. Source: Division-of-Thoughts, arXiv 2502.04392."""
CALLS_AT_ONCE = 2048

Words = tuple[tuple[str, ...], ...]
Key = tuple[str, str, Words]
"""A model, its prompt, and the words to which its reply is kept."""


@dataclass(frozen=True)
class Reply:
    """One greedy reply as text. A prompt that the model cannot read has an empty reply that costs nothing."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    """Tokens of prompt and reply."""
    least: float = 0.0
    """Probability of the least likely token."""
    quantile: float = 0.0
    """The 0.4-quantile of the tokens' probabilities."""


class Missing(Exception):
    """A reply that nobody has asked for yet."""

    def __init__(self, key: Key) -> None:
        super().__init__(*key)
        self.key = key


@dataclass
class Replies:
    """All replies so far. `settled` computes with them and asks for those that are missing."""

    engines: Mapping[str, Engine]
    max_tokens: int = 64
    longer: Mapping[str, int] = field(default_factory=dict)
    """The most tokens of models whose replies are longer."""
    _known: dict[Key, Reply] = field(default_factory=dict, repr=False)

    def of(self, model: str, prompt: str, words: Words = ()) -> Reply:
        """Raises: Missing."""
        key = (model, prompt, words)
        try:
            return self._known[key]
        except KeyError:
            raise Missing(key) from None

    async def settled(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """The results of `work`. What lacks a reply is computed again once all missing replies are there."""
        results: dict[int, T] = {}
        while len(results) < len(work):
            missing: dict[Key, None] = {}
            for i, compute in enumerate(work):
                if i in results:
                    continue
                try:
                    results[i] = compute()
                except Missing as e:
                    missing[e.key] = None
            await self.ask(missing)
        return [results[i] for i in range(len(work))]

    async def ask(self, keys: Iterable[Key]) -> None:
        """Asks for replies that are not known yet, in large batches."""
        wanted = [key for key in dict.fromkeys(keys) if key not in self._known]
        by_model: dict[str, list[Key]] = defaultdict(list)
        for key in wanted:
            by_model[key[0]].append(key)
        for asked in by_model.values():
            asked.sort(key=lambda key: len(key[1]))
            for start in range(0, len(asked), CALLS_AT_ONCE):
                part = asked[start : start + CALLS_AT_ONCE]
                replies = await asyncio.gather(*(self._reply(*key) for key in part))
                self._known.update(zip(part, replies, strict=True))

    async def _reply(self, model: str, prompt: str, words: Words) -> Reply:
        most = self.longer.get(model, self.max_tokens)
        sampling = Sampling(temperature=0.0, logprobs=True, max_tokens=most, words=words)
        call = EngineCall(
            messages=(Message(role="user", content=prompt),), sampling=sampling, timeout_s=600.0
        )
        try:
            done = await self.engines[model].generate(call)
        except EngineRefused:
            return Reply()
        logprobs = done.logprobs or ()
        return Reply(
            text=done.text,
            prompt_tokens=done.usage.prompt_tokens,
            tokens=done.usage.total_tokens,
            least=math.exp(min(logprobs, default=-math.inf)),
            quantile=confidence(logprobs, QUANTILE) or 0.0,
        )
