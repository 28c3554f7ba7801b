"""Checkpoints as stages read and write them: Hugging Face directories, or LoRA adapters that name their
base."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import JsonValue

from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.engines.prompting import (
    GENERIC_CLASSES,
    check_chat_template,
    end_token_of,
    has_generic_tokenizer,
)
from r2_serve.errors import ConfigError
from r2_train.launch.stage_run import StageRun

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

T = TypeVar("T")
GENERIC = "PreTrainedTokenizerFast"
"""Tokenizer class of the tiny models, by the name that every version of transformers knows."""


def load_causal_lm(base: str) -> PreTrainedModel:
    """The model of a directory, of `embedded:NAME` or of a hub name; safetensors only.

    It has its own precision on a machine with a GPU, and float32 on others: on a CPU the gradient of TRL's
    loss takes seven times longer in bfloat16. A LoRA directory gives its base with the adapter, which can be
    trained further.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = "auto" if torch.cuda.is_available() else torch.float32

    def load(path: str, name: str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=is_local_checkpoint(name),
            use_safetensors=True, trust_remote_code=False,
        )  # fmt: skip

    path = resolve_checkpoint(base)
    if not (Path(path) / "adapter_config.json").is_file():
        return load(path, base)
    from peft import PeftConfig, PeftModel

    adapted = PeftConfig.from_pretrained(path).base_model_name_or_path
    return PeftModel.from_pretrained(load(adapted, adapted), path, is_trainable=True)


def load_fresh(base: str, seed: int) -> PreTrainedModel:
    """A model of the base's shape with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    is_local = is_local_checkpoint(base)
    config = AutoConfig.from_pretrained(resolve_checkpoint(base), local_files_only=is_local)
    return AutoModelForCausalLM.from_config(config)


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `base`, whose end token is that of its chat template, as in serving.

    Raises: ConfigError if it has no chat template.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path, is_local = resolve_checkpoint(base), is_local_checkpoint(base)
    kind = PreTrainedTokenizerFast if has_generic_tokenizer(path) else AutoTokenizer
    tokenizer = kind.from_pretrained(path, local_files_only=is_local, trust_remote_code=False)
    check_chat_template(tokenizer, base)
    if (end := end_token_of(tokenizer)) is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


def lora_config(options: dict[str, JsonValue] | None) -> LoraConfig | None:
    """The `peft.LoraConfig` of `options`; None trains every weight."""
    if options is None:
        return None
    from peft import LoraConfig

    return settings(LoraConfig, {"task_type": "CAUSAL_LM", **options})


def settings(kind: Callable[..., T], arguments: Mapping[str, object]) -> T:
    """A library's settings. Raises: ConfigError with the library's words if it refuses a value."""
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as e:
        name = getattr(kind, "__name__", "the library")
        raise ConfigError(f"{name} refuses the settings: {e}") from e


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, run: StageRun) -> None:
    """Writes the stage's result. Every rank calls it, because ZeRO-3 gathers the weights."""
    trainer.save_model(str(run.final))
    if run.is_first:
        complete_checkpoint(run.final, tokenizer)


def has_final(directory: Path) -> bool:
    """True if the stage in `directory` has ended. Its tokenizer is written last."""
    return (directory / "final" / "tokenizer_config.json").exists()


def complete_checkpoint(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes saved weights ready for serving: a tokenizer, the key-value cache on, files that all may read."""
    is_generic = type(tokenizer).__name__ in GENERIC_CLASSES
    end = tokenizer.eos_token_id
    _edit(directory / "config.json", {"use_cache": True, "eos_token_id": end})
    _edit(directory / "generation_config.json", {"eos_token_id": end})
    tokenizer.save_pretrained(directory, save_jinja_files=not is_generic)
    if is_generic:
        changes: dict[str, JsonValue] = {
            "tokenizer_class": GENERIC,
            "is_local": None,
            "local_files_only": None,
        }
        _edit(directory / "tokenizer_config.json", changes)
    for file in directory.iterdir():
        if file.is_file():
            file.chmod(0o644)


def _edit(path: Path, changes: dict[str, JsonValue]) -> None:
    """Sets keys of a JSON file and removes those that are None. A LoRA directory has no `config.json`."""
    if path.exists():
        config = {**json.loads(path.read_text()), **changes}
        kept = {key: value for key, value in config.items() if value is not None or key not in changes}
        path.write_text(json.dumps(kept, indent=2) + "\n")
