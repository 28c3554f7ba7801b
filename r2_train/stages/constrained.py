"""GRPO whose rollouts keep to what serving sends, a schema or a list of words: one grammar for both.

Each prompt has a schema of its own, as an allocation has as many models as its plan has steps. The log-
probabilities that are learned from are the model's own, without the grammar.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers.generation import LogitsProcessorList
from trl import GRPOTrainer

from r2_serve.engines.grammar import Constraint, Grammars
from r2_serve.types import Json
from r2_train.config import Module
from r2_train.rollouts.described_pool import DescribedPool
from r2_train.stages.examples import Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PromptIds = tuple[int, ...]
MAX_REQUESTS = 16
"""Requests to a vLLM server at the same time, one for each schema of a batch."""


def schemas_by_prompt(
    examples: Sequence[Example], module: Module, pool: DescribedPool, tokenizer: PreTrainedTokenizerBase
) -> dict[PromptIds, Json]:
    """The schema of each prompt, by the ids that TRL gives it. Empty for a codec without schemas."""
    codec, found = pool.codec_of(module), {}
    for example in examples:
        if example.plan is None:
            schema = codec.plan_schema(pool.routing.limits.max_subtasks)
        else:
            schema = codec.allocation_schema(example.plan, pool.cards)
        if schema is not None:
            found[_prompt_ids(example, tokenizer)] = schema
    return found


def words_by_prompt(
    examples: Sequence[Example], pool: DescribedPool, tokenizer: PreTrainedTokenizerBase
) -> dict[PromptIds, list[list[int]]]:
    """The tokens that each place of an allocation may have, then the end, by the ids of the prompt.

    Empty for a codec whose allocation is no list of words, and for a tokenizer that cuts words apart.
    """
    codec, found = pool.codec_of("allocator"), {}
    for example in examples:
        if example.plan is None:
            continue
        cards = pool.cards if example.market is None else example.market.cards(pool.cards)
        words = codec.allocation_words(example.plan, cards)
        ids = [tokenizer(list(group), add_special_tokens=False)["input_ids"] for group in words]
        if ids and all(len(token) == 1 for group in ids for token in group):
            places = [[token[0] for token in group] for group in ids]
            found[_prompt_ids(example, tokenizer)] = [*places, [int(tokenizer.eos_token_id)]]
    return found


def _prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> PromptIds:
    chat = [{"role": message.role, "content": message.text} for message in example.messages]
    rendered = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return tuple(rendered["input_ids"])


class ConstrainedGrpoTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`GRPOTrainer`, whose generation keeps to `schemas` and `words`. Other prompts are answered freely.

    vLLM keeps to schemas alone.
    """

    schemas: Mapping[PromptIds, Json] = {}
    words: Mapping[PromptIds, list[list[int]]] = {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *given: Any, **more: Any) -> Any:
        if not self.schemas and not self.words:
            return super()._generate_single_turn(prompt_ids, *given, **more)
        constrained = self._by_vllm() if self.use_vllm else self._by_transformers(prompt_ids)
        with constrained:
            return super()._generate_single_turn(prompt_ids, *given, **more)

    @contextlib.contextmanager
    def _by_transformers(self, prompt_ids: list[list[int]]) -> Iterator[None]:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        vocabulary = model.config.get_text_config().vocab_size
        if self.schemas and not hasattr(self, "_grammars"):
            self._grammars = Grammars(self._tokenizer, vocabulary, self.eos_token_ids)
        rows = list(map(self._constraint, prompt_ids))
        plain = model.generate
        model.generate = partial(plain, logits_processor=LogitsProcessorList([RowConstraints(rows)]))
        try:
            yield
        finally:
            del model.generate  # the method of its class is left

    @contextlib.contextmanager
    def _by_vllm(self) -> Iterator[None]:
        """A server is asked by the first rank, for the prompts of all."""
        is_server = self.vllm_generation.mode == "server"
        asked = getattr(self.vllm_generation, "vllm_client" if is_server else "llm", None)
        each: Callable[..., Any] = _ask_each if is_server else _generate_each
        if asked is None:
            yield
            return
        asked.generate = partial(each, asked.generate, self._of)
        try:
            yield
        finally:
            del asked.generate

    def _constraint(self, prompt_ids: Sequence[int]) -> Constraint | WordConstraint | None:
        places = self.words.get(tuple(prompt_ids))
        if places is not None:
            return WordConstraint(places)
        schema = self._of(prompt_ids)
        return self._grammars.constraint(schema) if schema else None

    def _of(self, prompt_ids: Sequence[int]) -> Json | None:
        return self.schemas.get(tuple(prompt_ids))


class WordConstraint:
    """The state of a reply that has one of `places[i]` as its token i."""

    def __init__(self, places: Sequence[list[int]]) -> None:
        self._places, self._next = places, 0

    def apply(self, logits: torch.Tensor) -> None:
        """Sets the logits (V,) of other tokens to minus infinity, in place."""
        if self._next < len(self._places):
            allowed = self._places[self._next]
            kept = logits[allowed].clone()
            logits.fill_(float("-inf"))
            logits[allowed] = kept

    def accept(self, token: int) -> None:
        self._next += 1


class RowConstraints:
    """Logits processor of one `generate`: each row keeps to its constraint."""

    def __init__(self, rows: Sequence[Constraint | WordConstraint | None]) -> None:
        self._rows, self._is_first = rows, True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (B, T), `scores` (B, V); returns scores (B, V)."""
        scores = scores.clone()
        for i, row in enumerate(self._rows):
            if row is not None:
                if not self._is_first:
                    row.accept(int(input_ids[i, -1]))
                row.apply(scores[i])
        self._is_first = False
        return scores


def _generate_each(
    generate: Callable[..., Any], schema_of: Callable[[Sequence[int]], Json | None],
    prompts: list[dict[str, Any]], sampling_params: Any, **more: Any,
) -> Any:  # fmt: skip
    """vLLM's `generate` with the parameters of each prompt."""
    from vllm.sampling_params import StructuredOutputsParams

    each = []
    for prompt in prompts:
        params, schema = sampling_params.clone(), schema_of(prompt["prompt_token_ids"])
        params.structured_outputs = None if schema is None else StructuredOutputsParams(json=schema)
        each.append(params)
    return generate(prompts, sampling_params=each, **more)


def _ask_each(
    generate: Callable[..., dict[str, Any]], schema_of: Callable[[Sequence[int]], Json | None], *,
    prompts: list[list[int]], n: int, generation_kwargs: dict[str, Any] | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The `generate` of TRL's client of a vLLM server, which takes one schema: a request for each schema.

    The server answers `n` replies per prompt, those of one prompt in a row.
    """
    groups: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(json.dumps(schema_of(prompt)), []).append(place)

    def ask(schema: str, places: list[int]) -> dict[str, Any]:
        wanted = json.loads(schema)
        form = {} if wanted is None else {"structured_outputs": {"json": wanted}}
        given = {**(generation_kwargs or {}), **form}
        return generate(prompts=[prompts[i] for i in places], n=n, generation_kwargs=given, **more)

    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        outputs = list(pool.map(ask, groups, groups.values()))
    merged: dict[str, Any] = {}
    for name, values in outputs[0].items():
        width = 1 if name == "prompt_ids" else n
        merged[name] = None if values is None else [None] * (width * len(prompts))
    for places, output in zip(groups.values(), outputs, strict=True):
        for name, values in output.items():
            width = 1 if name == "prompt_ids" else n
            for i, place in enumerate(places) if values is not None else ():
                merged[name][width * place : width * (place + 1)] = values[width * i : width * (i + 1)]
    return merged
