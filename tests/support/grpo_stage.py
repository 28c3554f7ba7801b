"""Stages for the tests of launching, with a witness that writes down what each worker did.

`train` is TRL GRPO of the embedded SCAN decomposer, rewarded for plans like the reference's;
`train_on_served_pool` is the product's own stage.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import JsonValue
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

from r2_serve.config import Config
from r2_serve.errors import CodecError
from r2_serve.lab.domains import scan
from r2_serve.prompts import get_codec
from r2_serve.prompts.conversation import asked
from r2_serve.types import Plan
from r2_train.launch.stage_run import StageRun
from r2_train.stages import grpo
from r2_train.stages.grpo import GrpoStage
from tests import EMBEDDED

CODEC = get_codec("compact")
DECOMPOSER = EMBEDDED / "scan-decomposer"


class GrpoConfig(Config):
    """The settings that tests change."""

    max_steps: int
    save_steps: int = 2
    kill_rank_at: tuple[int, int] | None = None
    """(rank, step): this worker is killed once, after this step and a registered checkpoint."""
    witness: str | None = None
    """Directory that `Witness` writes to; None takes the run's."""
    extra_arguments: dict[str, JsonValue] = {}  # noqa: RUF012  # pydantic copies it


def train(config: GrpoConfig, run: StageRun) -> None:
    """The stage with its witness."""
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DECOMPOSER)
    witness = Witness(run, Path(config.witness or run.directory), config.kill_rank_at)

    def reward(completions: list[str], query: list[str], reference: list[str], **more: object) -> list[float]:
        witness.write(event="rewarded", queries=sorted(set(query)))
        return plans_as_the_reference(completions, query, reference)

    arguments = run.training_arguments() | {
        "max_steps": config.max_steps,
        "save_steps": config.save_steps,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 3.0,  # at 1 the replies of a group hardly differ, so nothing can be learned
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "optim": "adamw_torch",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(DECOMPOSER, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=prompts(64),
        args=GRPOConfig(**arguments | config.extra_arguments),
        callbacks=[*run.callbacks, witness],
    )
    trainer.train(resume_from_checkpoint=run.resume_argument)
    trainer.save_model(str(run.final))


def prompts(num_tasks: int) -> Dataset:
    tasks = [task for task in scan.tasks("train") if " and " in task.query][:: 20_000 // num_tasks][
        :num_tasks
    ]
    rows = [
        {
            "prompt": f"{CODEC.render_decompose(asked(task.query), 16)[0].content} =>",
            "query": task.query,
            "reference": task.reference_plan.model_dump_json(),
        }
        for task in tasks
    ]
    return Dataset.from_list(rows)


def plans_as_the_reference(completions: list[str], queries: list[str], reference: list[str]) -> list[float]:
    """Share of the reference's steps that each completion has in the same place; 0 if it is no plan."""
    rows = zip(completions, queries, reference, strict=True)
    return [_agreement(text, query, Plan.model_validate_json(plan)) for text, query, plan in rows]


def _agreement(completion: str, query: str, reference: Plan) -> float:
    try:
        plan = CODEC.parse_plan(completion, query)
    except CodecError:
        return 0.0
    wanted = [subtask.text for subtask in reference.subtasks]
    planned = [subtask.text for subtask in plan.subtasks]
    return sum(a == b for a, b in zip(planned, wanted)) / max(len(planned), len(wanted))


class OnServedPool(Config):
    """`r2_train.stages.grpo` with a witness."""

    stage: GrpoStage
    kill_rank_at: tuple[int, int]


def train_on_served_pool(config: OnServedPool, run: StageRun) -> None:
    """The product's stage."""
    witness = Witness(run, run.directory, config.kill_rank_at)
    grpo.run(config.stage, replace(run, callbacks=(*run.callbacks, witness)))


class Witness(TrainerCallback):  # type: ignore[misc]
    """Writes down what each attempt of each rank did, and kills its worker if the test wants it."""

    def __init__(self, run: StageRun, directory: Path, kill_rank_at: tuple[int, int] | None) -> None:
        self.run, self.kill_rank_at = run, kill_rank_at
        self.folder = directory / "witness"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.attempt = len(list(self.folder.glob(f"rank{run.rank}-attempt*")))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        optimizer = getattr(more["optimizer"], "optimizer", None)
        self.write(event="begin", pid=os.getpid(), optimizer=type(optimizer).__name__)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.write(event="step", step=state.global_step)
        if self.attempt == 0 and self.kill_rank_at == (self.run.rank, state.global_step):
            self._die()

    def write(self, **line: JsonValue) -> None:
        with (self.folder / f"rank{self.run.rank}-attempt{self.attempt}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _die(self) -> None:
        import ray.train

        assert ray.train.get_all_reported_checkpoints(), "a checkpoint should have been registered by now"
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Witnessed:
    """The lines that `Witness` wrote about one attempt of one rank."""

    lines: list[dict[str, Any]]

    @property
    def begin(self) -> dict[str, Any]:
        return next(line for line in self.lines if line["event"] == "begin")

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in self.lines if line["event"] == "step"]

    @property
    def queries(self) -> set[str]:
        return {query for line in self.lines if line["event"] == "rewarded" for query in line["queries"]}


def witnessed(directory: Path, rank: int, attempt: int) -> Witnessed:
    path = directory / "witness" / f"rank{rank}-attempt{attempt}.jsonl"
    return Witnessed([json.loads(line) for line in path.read_text().splitlines()])
