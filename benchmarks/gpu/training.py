"""The training sections of the GPU check: our stages, and plain TRL with the same settings."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Check

NUM_TASKS = 64
LOOPBACK = "127.0.0.1"


def train(check: Check, name: str, kind: str) -> dict[str, Any]:
    """Samples per second of our SFT and GRPO, and of plain TRL with the same arguments."""
    lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"} if kind == "lora" else None
    base, found = check.model(name), {}
    for method, ours, plain in (("sft", our_sft, plain_sft), ("grpo", our_grpo, plain_grpo)):
        for label, run in (("ours", ours), ("trl", plain)):
            directory = check.folder / f"{name}-{kind}-{method}-{label}"
            found[f"{method}_{label}_samples_per_s"] = run(check, base, lora, directory)
    return found


def zero2(check: Check) -> dict[str, Any]:
    """One step of SFT under DeepSpeed ZeRO-2, in one process that stands for all workers."""
    import torch

    from r2_train.launch import zero
    from r2_train.launch.deepspeed_worker import start_deepspeed

    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port}
    os.environ["TORCH_EXTENSIONS_DIR"] = str(check.folder / "extensions")
    if not check.is_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.distributed.init_process_group("nccl" if check.is_gpu else "gloo")
    start_deepspeed(use_gpu=check.is_gpu)
    config = zero.read_config("zero2")
    config = config if check.is_gpu else zero.cpu_variant(config)
    model, directory = check.model("random-100m"), check.folder / "zero2"
    return {"steps": 1, "samples_per_s": our_sft(check, model, None, directory, deepspeed=config, steps=1)}


def sft_arguments(check: Check, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": check.scale.sft_batch,
        "optim": "adamw_torch",
        "logging_steps": 1000,
    }


def grpo_arguments(check: Check) -> dict[str, Any]:
    scale = check.scale
    return {
        "max_steps": scale.grpo_steps,
        "per_device_train_batch_size": scale.generations,
        "num_generations": scale.generations,
        "max_completion_length": scale.completion_tokens,
        "optim": "adamw_torch",
        "logging_steps": 1000,
        "save_strategy": "no",
    }


def our_sft(
    check: Check, base: str, lora: Any, directory: Path, *, deepspeed: Any = None, steps: int | None = None
) -> float:
    from r2_train.config import SftConfig
    from r2_train.stages import sft

    steps = check.scale.sft_steps if steps is None else steps
    run = stage_run(check, directory, deepspeed)
    stage = sft.SftStage(
        examples=sft_examples(directory),
        base=base,
        sft=SftConfig(lora=lora, trainer=sft_arguments(check, steps)),
    )
    sft.run(stage, run)
    return speed_in(run.callbacks, steps * check.scale.sft_batch)


def plain_sft(check: Check, base: str, lora: Any, directory: Path) -> float:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from r2_train.stages import sft
    from r2_train.stages.examples import read_examples
    from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config

    run = stage_run(check, directory)
    arguments = {**sft.DEFAULTS, **run.training_arguments(), **sft_arguments(check, check.scale.sft_steps)}
    tokenizer = load_tokenizer(base)
    rows = [sft.tokenized(example, tokenizer) for example in read_examples(sft_examples(directory))]
    trainer = SFTTrainer(
        model=load_causal_lm(base),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[*run.callbacks],
        peft_config=lora_config(lora),
    )
    trainer.train()
    return speed_in(run.callbacks, check.scale.sft_steps * check.scale.sft_batch)


def our_grpo(check: Check, base: str, lora: Any, directory: Path) -> float:
    """The stage itself: each reply is parsed, run on the embedded workers if it is a plan, and rewarded."""
    from r2_train.config import GrpoConfig, PoolConfig
    from r2_train.stages import grpo
    from r2_train.stages.rewards import Reference

    run = stage_run(check, directory)
    stage = grpo.GrpoStage(
        module="decomposer",
        base=base,
        examples=grpo_examples(directory),
        grpo=GrpoConfig(lora=lora, max_flat_steps=None, trainer=grpo_arguments(check)),
        pool=PoolConfig(virtual_model="r2"),
        data=word_problems(),
        reference=Reference(cost_usd=1e-4, critical_path_tokens=10),
        cache=directory / "calls",
    )
    grpo.run(stage, run)
    return speed_in(run.callbacks, check.scale.grpo_steps * check.scale.generations)


def plain_grpo(check: Check, base: str, lora: Any, directory: Path) -> float:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from r2_train.stages import grpo
    from r2_train.stages.examples import read_examples
    from r2_train.stages.model_files import load_causal_lm, load_tokenizer, lora_config

    run = stage_run(check, directory)
    rows = [
        {"prompt": [message.model_dump() for message in example.messages]}
        for example in read_examples(grpo_examples(directory))
    ]
    trainer = GRPOTrainer(
        model=load_causal_lm(base),
        reward_funcs=lambda completions, **more: [1.0] * len(completions),
        args=GRPOConfig(**{**grpo.DEFAULTS, **run.training_arguments(), **grpo_arguments(check)}),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(base),
        callbacks=[*run.callbacks],
        peft_config=lora_config(lora),
    )
    trainer.train()
    return speed_in(run.callbacks, check.scale.grpo_steps * check.scale.generations)


def word_problems() -> Any:
    from r2_train.config import DataConfig

    return DataConfig(benchmark="words", num_train=NUM_TASKS, num_validation=8)


def sft_examples(directory: Path) -> Path:
    """Prompts and plans in plain English, as a chat model is trained on."""
    from r2_serve.lab.domains import words
    from r2_serve.prompts import get_codec
    from r2_serve.prompts.conversation import asked
    from r2_train.stages.examples import Example, write_examples

    codec = get_codec("instruct")
    examples = [
        Example(
            task_id=task.id,
            query=task.query,
            messages=tuple(codec.render_decompose(asked(task.query), 16)),
            target=codec.format_plan(task.reference_plan, task.query),
        )
        for task in words.tasks("train", NUM_TASKS)
    ]
    return write_examples(directory / "examples.jsonl", examples)


def grpo_examples(directory: Path) -> Path:
    from r2_train.config import PoolConfig
    from r2_train.rollouts.described_pool import described
    from r2_train.stages.examples import plan_example, write_examples
    from r2_train.stages.tasks import TaskSplit

    pool = described(PoolConfig(virtual_model="r2"))
    examples = [plan_example(pool, task.id, task.query) for task in TaskSplit.load(word_problems()).train]
    return write_examples(directory / "examples.jsonl", examples)


def stage_run(check: Check, directory: Path, deepspeed: Any = None) -> Any:
    """A stage's place in this process, with a clock that starts at the first step."""
    from transformers import TrainerCallback

    from r2_train.launch.stage_run import StageRun

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        start_s = end_s = 0.0

        def on_train_begin(self, *_: Any, **more: Any) -> None:
            self.start_s = now_s(check)

        def on_step_end(self, *_: Any, **more: Any) -> None:
            self.end_s = now_s(check)

    directory.mkdir(parents=True, exist_ok=True)
    return StageRun(directory, callbacks=(Clock(),), deepspeed=deepspeed, use_gpu=check.is_gpu)


def now_s(check: Check) -> float:
    if check.is_gpu:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def speed_in(callbacks: Sequence[Any], num_samples: int) -> float:
    (clock,) = callbacks
    return float(num_samples / (clock.end_s - clock.start_s))
