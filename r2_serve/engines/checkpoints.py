"""Checkpoints in memory: a model with its own tokenizer, loaded from a directory or from an adapter.

A batch of another checkpoint may run while one loads, so nothing here changes a loaded checkpoint: a LoRA
adapter is merged into a copy of its base. Each adapter takes the memory of a base, which suits tiny models;
vLLM, for large ones, shares the base.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from r2_serve.config import TransformersEngineConfig
from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.engines.grammar import Grammars
from r2_serve.engines.prompting import check_chat_template, end_token_of, has_generic_tokenizer
from r2_serve.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_loading = threading.Lock()
"""transformers patches torch's initialisers while it loads: one load at a time."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model and its tokenizer, compared by identity."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    eos_ids: frozenset[int]
    context_tokens: int

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.model.config.get_text_config().vocab_size, sorted(self.eos_ids))


def load_checkpoint(path: str, config: TransformersEngineConfig) -> Checkpoint:
    """The model at `path`. Of its generation settings only the end tokens are read.

    Raises: ConfigError if a file is missing or cannot be loaded.
    """
    folder = resolve_checkpoint(path)
    tokenizers = PreTrainedTokenizerFast if has_generic_tokenizer(folder) else AutoTokenizer
    options = {"trust_remote_code": False, "local_files_only": is_local_checkpoint(path)}
    try:
        with _loading, _no_progress_bars():
            tokenizer = tokenizers.from_pretrained(folder, **options)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, config.dtype), use_safetensors=True, **options
            )
    except Exception as e:  # the libraries raise many types for a broken file
        raise ConfigError(f"cannot load the model {path!r}: {str(e)[:500]}") from e
    check_chat_template(tokenizer, path)
    eos = model.generation_config.eos_token_id
    eos_ids = [eos] if isinstance(eos, int) else list(eos or [])
    if not eos_ids and tokenizer.eos_token_id is None:
        raise ConfigError(f"the model {path!r} names no end-of-sequence token")
    eos_ids = eos_ids or [tokenizer.eos_token_id]
    if (end := end_token_of(tokenizer)) is not None and end not in eos_ids:
        eos_ids.append(end)
    context_tokens = int(model.config.get_text_config().max_position_embeddings)
    return Checkpoint(tokenizer, model.to(config.device).eval(), frozenset(eos_ids), context_tokens)


def load_adapter(name: str, path: str, base: Checkpoint, config: TransformersEngineConfig) -> Checkpoint:
    """The adapter in the directory `path`: a whole checkpoint, or LoRA merged into a copy of `base`.

    Raises: ConfigError if it is neither, cannot be loaded, or is LoRA and peft is not installed.
    """
    if (Path(path) / "adapter_config.json").is_file():
        return replace(base, model=_merged(name, path, base.model))
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(
            f"adapter {name!r}: {path!r} is no directory with an adapter_config.json (LoRA) "
            "or config.json (a checkpoint)"
        )
    return load_checkpoint(path, config)


def _merged(name: str, path: str, base: PreTrainedModel) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as e:
        raise ConfigError(f"adapter {name!r} is LoRA, which needs peft: pip install peft ({e})") from e
    if not (Path(path) / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"adapter {name!r}: no adapter_model.safetensors in {path!r}; other formats are not loaded"
        )
    try:
        with _loading:
            adapted = PeftModel.from_pretrained(copy.deepcopy(base), path)
            merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as e:
        raise ConfigError(f"adapter {name!r} cannot be loaded from {path!r}: {str(e)[:500]}") from e
    return merged.eval()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
