"""`r2-train grpo`: one module by TRL's GRPOTrainer, rewarded by what its replies come to on the served pool.

Differs from the textbook in the reward (success-gated cost, `r2_train.stages.rewards`) and in what is not done to it: it is not
divided by the group's standard deviation. In a group where every reply is right only small differences of cost are left;
divided by their own deviation they weigh as much as right against wrong, and the policy becomes cheap and wrong.
Groups without any difference have no gradient; TRL counts them as `frac_reward_zero_std`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r2_serve.config import Config
from r2_serve.grading.graders import Grader
from r2_serve.types import Message
from r2_train.config import DataConfig, GrpoConfig, Module, PoolConfig
from r2_train.launch.stage_run import StageRun
from r2_train.rollouts.call_cache import CallCache
from r2_train.rollouts.served_pool import Checkpoint, ServedPool, open_pool
from r2_train.stages.examples import Example, read_examples
from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config, save_final
from r2_train.stages.rewards import Judge, PlanReward, Reference, TokenCounts
from r2_train.stages.run_log import attach_log, quiet_libraries
from r2_train.stages.tasks import TaskSplit

DEFAULTS: dict[str, Any] = {
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
"""Of `trl.GRPOConfig`, where ours differ. 1,024 steps: paper. G = 8 where the paper has 4: a group of 4 at 90 % accuracy has no signal in
two cases of three. `scale_rewards` none: Dr. GRPO (arXiv 2503.20783), see above. 1e-5: ten times TRL's, as for LoRA."""


class GrpoStage(Config):
    """What `run` needs; it travels to Ray Train's workers."""

    module: Module
    base: str
    """Checkpoint to start from."""
    examples: Path
    grpo: GrpoConfig
    pool: PoolConfig
    data: DataConfig
    partner: Path | None = None
    """Checkpoint of the other module, run in this process; None: what the serve config says."""
    reference: Reference
    cache: Path
    """Directory of the call cache."""
    seed: int = 0


def run(stage: GrpoStage, run: StageRun) -> None:
    """Trains, and writes `final` in the run's directory. Raises: ConfigError, EngineUnavailable where the pool is out."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    quiet_libraries()
    examples = read_examples(stage.examples)
    model, tokenizer = load_causal_lm(stage.base), load_tokenizer(stage.base)
    arguments = {**DEFAULTS, **run.training_arguments(), **stage.grpo.trainer, "seed": stage.seed}
    with _judge(stage, run, tokenizer) as judge:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=PlanReward(judge, stage.grpo.reward, stage.reference),
            args=GRPOConfig(**arguments),
            train_dataset=Dataset.from_list([prompt_row(example) for example in examples]),
            processing_class=tokenizer,
            callbacks=list(run.callbacks),
            peft_config=lora_config(stage.grpo.lora),
        )
        attach_log(trainer, run)
        trainer.train(resume_from_checkpoint=run.resume_argument)
        save_final(trainer, tokenizer, run)


def prompt_row(example: Example) -> dict[str, Any]:
    """The conversation, and the columns that the reward is called with."""
    plan = None if example.plan is None else example.plan.model_dump_json(exclude_none=True)
    return {
        "prompt": [message.model_dump() for message in example.messages],
        "task_id": example.task_id,
        "plan": plan,
    }


@contextlib.contextmanager
def _judge(stage: GrpoStage, run: StageRun, tokenizer: Any) -> Iterator[Judge]:
    """The reward's side of the stage. Every rank has a cache file of its own: SQLite has one writer."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tasks = TaskSplit.load(stage.data).by_id
    with CallCache(stage.cache / f"calls-{run.rank}.sqlite") as cache:
        pool = pool_with_partner(stage.pool, cache, stage.module, stage.partner)
        yield Judge(stage.module, pool, Grader(), stage.grpo.reward, tasks, token_counts(tokenizer))


def pool_with_partner(
    config: PoolConfig, cache: CallCache, module: Module, partner: Path | None
) -> ServedPool:
    other: Module = "allocator" if module == "decomposer" else "decomposer"
    return open_pool(config, cache, {other: Checkpoint(path=partner)} if partner is not None else {})


def token_counts(tokenizer: Any) -> TokenCounts:
    """As serving counts: the rendered prompt, and the reply with its end token."""
    from r2_serve.engines.prompting import prompt_ids

    def prompt(messages: Sequence[Message]) -> int:
        return len(prompt_ids(tokenizer, messages, tokenizer.model_max_length))

    def reply(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    return TokenCounts(prompt, reply)
