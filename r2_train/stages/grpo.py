"""`r2-train grpo`: trains one module with TRL's GRPOTrainer, rewarded for what its replies achieve.

Two points differ from the textbook. The reward counts cost only after success (`r2_train.stages.rewards`),
and it is not divided by the group's standard deviation. In a group where every reply is right, only small
differences of cost are left. Divided by their own deviation they would weigh as much as right against wrong,
and the module would become cheap and wrong. Groups without differences give no gradient; TRL counts them as
`frac_reward_zero_std`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from r2_serve.config import Config
from r2_serve.grading.graders import Grader
from r2_serve.types import Message
from r2_train.config import DataConfig, GrpoConfig, Module, PoolConfig
from r2_train.launch.stage_run import StageRun
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.served_pool import Checkpoint, open_pool
from r2_train.stages.examples import Example, read_examples
from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config, save_final, settings
from r2_train.stages.rewards import Judge, PlanReward, Reference, TokenCounts
from r2_train.stages.run_log import quiet_libraries, train_logged
from r2_train.stages.tasks import TaskSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULTS: dict[str, JsonValue] = {
    "beta": 0.0,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "learning_rate": 1e-5,
    "logging_steps": 1,
    "loss_type": "dapo",
    "lr_scheduler_type": "constant_with_warmup",
    "max_steps": 1024,
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 128,
    "scale_rewards": "none",
    "temperature": 1.0,
    "warmup_steps": 0.05,
}
"""Our `trl.GRPOConfig` where it differs from TRL's. 1,024 steps: the paper. Groups of 8 where the paper has
4: at 90 % accuracy, two of three groups of 4 give no signal. `scale_rewards` none: Dr. GRPO (arXiv
2503.20783), as above. Learning rate 1e-5: ten times TRL's, as is usual for LoRA."""


class GrpoStage(Config):
    """The settings of `run`, which travel to Ray Train's workers."""

    module: Module
    base: str
    """Checkpoint to start from."""
    examples: Path
    grpo: GrpoConfig
    pool: PoolConfig
    data: DataConfig
    partner: Path | None = None
    """Checkpoint of the other module, run in this process. None takes the served one."""
    reference: Reference
    cache: Path
    """Directory of the call caches, one for each rank."""
    max_cost_usd: Decimal | None = None
    """Most that calls of the whole directory may cost, over all ranks and stages."""
    seed: int = 0


def run(stage: GrpoStage, run: StageRun) -> None:
    """Trains, and writes `final`; nothing but `stopped.json` if no reply was ever right.

    Raises: ConfigError; EngineUnavailable if the pool is down.
    """
    from datasets import Dataset
    from trl import GRPOConfig

    from r2_train.stages.constrained import ConstrainedGrpoTrainer, schemas_by_prompt, words_by_prompt
    from r2_train.stages.flat_rewards import StopWhenFlat

    quiet_libraries()
    examples = read_examples(stage.examples)
    arguments = {**DEFAULTS, **run.training_arguments(), **stage.grpo.trainer, "seed": stage.seed}
    args = settings(GRPOConfig, arguments)  # before the model, which ZeRO-3 then divides while it is loaded
    model, tokenizer = load_causal_lm(stage.base), load_tokenizer(stage.base)
    flat = StopWhenFlat(run.directory, stage.grpo.max_flat_steps)
    with _judge(stage, run, tokenizer) as judge:
        trainer = ConstrainedGrpoTrainer(
            model=model,
            reward_funcs=PlanReward(judge, stage.grpo.reward, stage.reference),
            args=args,
            train_dataset=Dataset.from_list([_prompt_row(example) for example in examples]),
            processing_class=tokenizer,
            callbacks=[*run.callbacks, flat],
            peft_config=lora_config(stage.grpo.lora),
        )
        trainer.schemas = schemas_by_prompt(examples, stage.module, judge.pool, tokenizer)
        if stage.module == "allocator":
            trainer.words = words_by_prompt(examples, judge.pool, tokenizer)
        try:
            train_logged(trainer, run)
        finally:  # the engines belong to the event loop that the rewards ran on
            asyncio.run_coroutine_threadsafe(judge.pool.aclose(), trainer.async_loop).result()
        if flat.stopped is None or not flat.stopped.is_hopeless:
            save_final(trainer, tokenizer, run)


def other_module(module: Module) -> Module:
    return "allocator" if module == "decomposer" else "decomposer"


def _prompt_row(example: Example) -> dict[str, object]:
    """The conversation, and the columns that the reward is called with."""
    plan = None if example.plan is None else example.plan.model_dump_json(exclude_none=True)
    market = None if example.market is None else example.market.model_dump_json()
    prompt = [message.model_dump() for message in example.messages]
    return {"prompt": prompt, "task_id": example.task_id, "plan": plan, "market": market}


@contextlib.contextmanager
def _judge(stage: GrpoStage, run: StageRun, tokenizer: PreTrainedTokenizerBase) -> Iterator[Judge]:
    """The judge of the replies. Every rank has its own cache file, because SQLite has one writer."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tasks = TaskSplit.load(stage.data).by_id
    partner = {} if stage.partner is None else {other_module(stage.module): Checkpoint(path=stage.partner)}
    with CallCache(stage.cache / f"calls-{run.rank}.sqlite", stage.max_cost_usd) as cache:
        pool = open_pool(stage.pool, cache, partner)
        yield Judge(stage.module, pool, Grader(), stage.grpo.reward, tasks, _token_counts(tokenizer))


def _token_counts(tokenizer: PreTrainedTokenizerBase) -> TokenCounts:
    """Counts as serving does: the rendered prompt, and the reply with its end token."""
    from r2_serve.engines.prompting import prompt_ids

    def prompt(messages: Sequence[Message]) -> int:
        return len(prompt_ids(tokenizer, messages, tokenizer.model_max_length))

    def reply(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    return TokenCounts(prompt, reply)
