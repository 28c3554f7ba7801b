"""What the scripted provider remembers over requests."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.conformance.provider.conversation import Asked

LEAST_CACHED = 1024
"""Fewest tokens of a prompt that are cached, as at OpenAI and Anthropic."""


@dataclass
class Memory:
    """Prefixes of prompts that are cached, and how often something was tried."""

    tries: Counter[str] = field(default_factory=Counter)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _prefixes: set[str] = field(default_factory=set)

    def cached(self, asked: Asked) -> tuple[int, int]:
        """Tokens of the prompt that are read from the cache, and tokens that are written to it.

        Chat completions and Responses cache every prompt by themselves. Messages caches up to the marks of
        the request and bills what it writes.
        """
        is_automatic = asked.dialect != "messages"
        digest, tokens, read, longest = hashlib.sha256(asked.model.encode()), 0, 0, 0
        for each in asked.said:
            digest.update(repr((each.role, each.text, each.images, each.calls)).encode())
            tokens += each.tokens
            if tokens < LEAST_CACHED:
                continue
            if digest.hexdigest() in self._prefixes:
                read = tokens
            if is_automatic or each.is_marked:
                longest = tokens
                self._prefixes.add(digest.hexdigest())
        return read, 0 if is_automatic else max(longest - read, 0)
