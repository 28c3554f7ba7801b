"""Checkpoints as stages read and write them: an ordinary Hugging Face directory, or a LoRA adapter beside its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from r2_serve.engines import is_local_checkpoint, resolve_checkpoint
from r2_serve.engines.prompting import GENERIC_CLASSES, check_chat_template, has_generic_tokenizer
from r2_train.launch.stage_run import StageRun

GENERIC = "PreTrainedTokenizerFast"
"""Tokenizer class of the tiny models, whose `tokenizer.json` is the whole truth about them; every version of transformers knows it."""


def load_causal_lm(base: str) -> Any:
    """The model of a directory, `embedded:NAME` or a hub name in its own precision; of a LoRA's directory its base with the
    adapter, which goes on training. safetensors only."""
    from transformers import AutoModelForCausalLM

    path = resolve_checkpoint(base)
    options = {"use_safetensors": True, "trust_remote_code": False}
    if not (Path(path) / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", local_files_only=is_local_checkpoint(base), **options
        )
    from peft import PeftConfig, PeftModel

    of = PeftConfig.from_pretrained(path).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(
        of, dtype="auto", local_files_only=is_local_checkpoint(of), **options
    )
    return PeftModel.from_pretrained(model, path, is_trainable=True)


def load_tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = resolve_checkpoint(base)
    kind = PreTrainedTokenizerFast if has_generic_tokenizer(path) else AutoTokenizer
    tokenizer = kind.from_pretrained(
        path, local_files_only=is_local_checkpoint(base), trust_remote_code=False
    )
    check_chat_template(tokenizer, base)
    return tokenizer


def load_fresh(base: str, seed: int) -> Any:
    """A model of the base's shape with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(resolve_checkpoint(base), local_files_only=is_local_checkpoint(base))
    )


def lora_config(options: dict[str, Any] | None) -> Any:
    """`peft.LoraConfig` of these options; None stays None (every weight is trained)."""
    if options is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **options)


def save_final(trainer: Any, tokenizer: Any, run: StageRun) -> None:
    """The trained weights and the tokenizer as the stage's result, readable by everyone. Every rank calls it (ZeRO-3 gathers)."""
    trainer.save_model(str(run.final))
    if run.is_first:
        complete_checkpoint(run.final, tokenizer)


def has_final(directory: Path) -> bool:
    """Whether a stage in `directory` has ended: the tokenizer is written last."""
    return (directory / "final" / "tokenizer_config.json").exists()


def complete_checkpoint(directory: Path, tokenizer: Any) -> None:
    """Makes of weights that a trainer saved a checkpoint as serving reads it: with a tokenizer, and the cache that training turns off."""
    is_generic = type(tokenizer).__name__ in GENERIC_CLASSES
    _edit(directory / "config.json", use_cache=True)
    tokenizer.save_pretrained(directory, save_jinja_files=not is_generic)
    if is_generic:
        _edit(
            directory / "tokenizer_config.json", tokenizer_class=GENERIC, is_local=None, local_files_only=None
        )
    for file in directory.iterdir():
        if file.is_file():
            file.chmod(0o644)


def _edit(path: Path, **changes: object) -> None:
    """Keys of a JSON file set, or taken out where None; a LoRA's directory has no `config.json`."""
    if path.exists():
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(
            json.dumps(
                {key: value for key, value in config.items() if value is not None or key not in changes},
                indent=2,
            )
            + "\n"
        )
