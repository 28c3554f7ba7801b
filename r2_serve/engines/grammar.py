"""Replies that keep to a JSON schema: which tokens may come next, by xgrammar, in serving and in training.

vLLM compiles the same schemas by the same library. Without it, replies are free.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from r2_serve.errors import EngineRefused
from r2_serve.types import Json, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from xgrammar import GrammarMatcher

HAS_XGRAMMAR = find_spec("xgrammar") is not None
ANY_OBJECT: Json = {"type": "object"}


class Grammars:
    """The grammars of one tokenizer. Each schema is compiled once, which takes milliseconds.

    `vocabulary` is the width of the model's logits, which may exceed the tokenizer's number of tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_ids: Sequence[int]) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(end_ids)
        )
        self._vocabulary, self._compiler = vocabulary, xgrammar.GrammarCompiler(info, max_threads=1)

    def constraint(self, schema: Json) -> Constraint:
        """A fresh constraint for one reply. Raises: EngineRefused if the schema cannot be compiled."""
        import xgrammar

        try:
            compiled = self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False)
        except RuntimeError as e:
            raise EngineRefused.of("response_format", f"the JSON schema cannot be kept to: {e}") from e
        return Constraint(xgrammar.GrammarMatcher(compiled), self._vocabulary)


class Constraint:
    """The state of one reply in its grammar."""

    def __init__(self, matcher: GrammarMatcher, vocabulary: int) -> None:
        import xgrammar

        self._matcher, self._mask = matcher, xgrammar.allocate_token_bitmask(1, vocabulary)

    def apply(self, logits: torch.Tensor) -> None:
        """Sets the logits (V,) of tokens that may not come next to minus infinity, in place."""
        import xgrammar

        if not self._matcher.is_terminated() and self._matcher.fill_next_token_bitmask(self._mask):
            xgrammar.apply_token_bitmask_inplace(logits[None], self._mask.to(logits.device))

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        if not self._matcher.is_terminated():
            self._matcher.accept_token(token)


def schema_of(sampling: Sampling) -> Json | None:
    """The schema that the reply must keep to; None if any text will do."""
    wanted = sampling.response_format
    if wanted is None:
        return sampling.json_schema
    return ANY_OBJECT if wanted["type"] == "json_object" else wanted["json_schema"]["schema"]
