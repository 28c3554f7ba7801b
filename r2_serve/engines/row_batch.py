"""Continuous batching over transformers: rows join between two steps, and leave with their last token.

transformers has continuous batching too (`generate_batch`), but on CPUs it was 8 to 16 times slower than
plain `generate` (measured with 5.17). Here the rows share one key-value cache, padded on the left, so that
each goes on at its right end.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from r2_serve.engines.decoding import Row, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RowBatch:
    """The rows of one model that decode together: row i of the cache is that of `rows[i]`.

    A model with layers that keep more than keys and values (linear attention, such as Qwen3-Next) cannot
    change its rows: new ones join an empty batch, and ended ones stay until all have ended.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._options = inspect.signature(model.forward).parameters
        self._config = model.config.get_text_config()
        kinds = {type(layer) for layer in DynamicCache(config=self._config).layers}
        self._can_change = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        self.rows: list[Row] = []
        self._cache = self._new_cache()
        self._mask = torch.zeros((0, 0), dtype=torch.long, device=model.device)
        """(B, T): 1 where the cache holds a token of the row, 0 in its padding."""

    @property
    def takes_rows(self) -> bool:
        return self._can_change or not self.rows

    def admit(self, new: Sequence[Row]) -> None:
        """Reads the prompts of `new` rows and takes their first tokens."""
        width = max(len(row.prompt) for row in new)
        ids = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in new])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in new])
        cache, mask = self._new_cache(), mask.to(self._model.device)
        logits = self._forward(ids, mask, cache)
        if self.rows:
            self._join(cache, mask)
        else:
            self._cache, self._mask = cache, mask
        self.rows += new
        _push(new, logits)
        self.drop_ended()

    def advance(self) -> None:
        """Takes the next token of every row."""
        ids = torch.tensor([row.generated[-1:] for row in self.rows])
        self._mask = pad(self._mask, (0, 1), value=1)
        _push(self.rows, self._forward(ids, self._mask, self._cache))
        self.drop_ended()

    def drop_ended(self) -> None:
        """Frees the places of rows that have ended or were cancelled, and columns that only they needed."""
        kept = [i for i, row in enumerate(self.rows) if not row.is_done]
        if not kept:
            self.rows, self._cache = [], self._new_cache()
        elif len(kept) < len(self.rows) and self._can_change:
            self.rows = [self.rows[i] for i in kept]
            mask = self._mask[kept]
            first = int(mask.any(dim=0).int().argmax())
            self._mask = mask[:, first:]
            for layer in self._cache.layers:
                layer.keys = layer.keys[kept, :, first:]
                layer.values = layer.values[kept, :, first:]

    def _join(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        """Adds the rows of another cache below those of this one. The narrower one is padded on the left."""
        width = max(mask.shape[1], self._mask.shape[1])

        def below(upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
            """The tokens are the last dimension but one."""
            return torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in (upper, lower)])

        self._mask = below(self._mask[..., None], mask[..., None])[..., 0]
        for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys, ours.values = below(ours.keys, theirs.keys), below(ours.values, theirs.values)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Logits (B, V) after the last column of `ids` (B, N), whose tokens are the last ones of `mask`."""
        positions = (mask.cumsum(dim=-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        known = {name: value for name, value in options.items() if name in self._options}
        ids = ids.to(self._model.device)
        output = self._model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **known)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _new_cache(self) -> DynamicCache:
        """A plain cache keeps all columns, also those outside a sliding window, which the mask leaves out."""
        return DynamicCache() if self._can_change else DynamicCache(config=self._config)


def _push(rows: Sequence[Row], logits: torch.Tensor) -> None:
    for row, token, logprob in zip(rows, *choose(rows, logits), strict=True):
        if not row.is_done:
            row.push(token, logprob)
