"""`r2-train sft`: trains one module on its examples with TRL's SFTTrainer.

It trains every weight of a tiny model, or a LoRA of a large one. Rows are tokenized here, by the function
that serving uses, so that training and serving see the same ids for every chat template. The loss is on the
target and its end token only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from r2_serve.config import Config
from r2_serve.errors import ConfigError
from r2_train.config import SftConfig
from r2_train.launch.stage_run import StageRun
from r2_train.stages.examples import Example, read_examples
from r2_train.stages.model_files import (
    load_causal_lm,
    load_fresh,
    load_tokenizer,
    lora_config,
    save_final,
    settings,
)
from r2_train.stages.run_log import quiet_libraries, train_logged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULTS: dict[str, JsonValue] = {
    "completion_only_loss": True,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "logging_steps": 10,
    "lr_scheduler_type": "cosine",
    "max_length": 4096,
    "report_to": "none",
    "save_strategy": "no",
    "warmup_steps": 0.05,
}
"""Our `trl.SFTConfig` where it differs from TRL's. Only the end is saved: a tiny stage takes a minute."""


class SftStage(Config):
    """The settings of `run`, which travel to Ray Train's workers."""

    examples: Path
    base: str
    """Checkpoint to start from; `sft.fresh` takes only its shape and vocabulary."""
    sft: SftConfig
    seed: int = 0


def run(stage: SftStage, run: StageRun) -> None:
    """Trains, and writes `final` in the run's directory. Raises: ConfigError."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    quiet_libraries()
    examples = read_examples(stage.examples)
    arguments = {**DEFAULTS, **run.training_arguments(), **stage.sft.trainer, "seed": stage.seed}
    args = settings(SFTConfig, arguments)  # before the model, which ZeRO-3 then divides while it is loaded
    model = load_fresh(stage.base, stage.seed) if stage.sft.fresh else load_causal_lm(stage.base)
    tokenizer = load_tokenizer(stage.base)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([tokenized(example, tokenizer) for example in examples]),
        processing_class=tokenizer,
        callbacks=list(run.callbacks),
        peft_config=lora_config(stage.sft.lora),
    )
    train_logged(trainer, run)
    save_final(trainer, tokenizer, run)


def tokenized(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """`input_ids` of prompt, target and end token, and a mask that is 1 where the model learns; both (T,)."""
    from r2_serve.engines.prompting import prompt_ids

    if example.target is None:
        raise ConfigError(f"example {example.task_id} has no target to learn: write its examples again")
    prompt = prompt_ids(tokenizer, example.messages, tokenizer.model_max_length)
    target = [*tokenizer(example.target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": prompt + target, "completion_mask": [0] * len(prompt) + [1] * len(target)}
