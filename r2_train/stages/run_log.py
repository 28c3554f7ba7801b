"""The metrics of a stage: JSON lines in `metrics.jsonl`, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from r2_serve.lab.jsonl import whole_lines
from r2_train.launch.stage_run import StageRun
from r2_train.launch.watchdog import Watchdog

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SHOWN = ("loss", "reward", "accuracy", "well_formed", "cost_ratio", "frac_reward_zero_std")
"""The metrics that are printed, about ten times in a stage."""


def quiet_libraries() -> None:
    """Turns the progress bars of datasets and transformers off; `train_logged` prints the progress."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def train_logged(trainer: Trainer, run: StageRun) -> None:
    """Trains from the newest checkpoint. The first rank writes the metrics and prints some of them."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if run.is_first:
        _add_writer(trainer, run.directory)
    dog = Watchdog(run)
    trainer.add_callback(_step_watch(dog))
    dog.start()
    try:
        trainer.train(resume_from_checkpoint=run.resume_argument)
    finally:
        dog.stop()


def _step_watch(dog: Watchdog) -> TrainerCallback:
    """Tells the watchdog of each step, and of the work between steps, such as saving."""
    from transformers import TrainerCallback

    class StepWatch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_step_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: object
        ) -> None:
            dog.step(state.global_step + 1)

        on_step_end = on_step_begin

    return StepWatch()


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """Reads every complete line of a `metrics.jsonl`."""
    return map(json.loads, whole_lines(path))


def _add_writer(trainer: Trainer, directory: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback

    started_s, writer = time.process_time(), SummaryWriter(str(directory / TENSORBOARD))

    class MetricsWriter(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        """Writes finite numbers only, because JSON has no others."""

        def on_log(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
            logs: Mapping[str, object], **more: object,
        ) -> None:  # fmt: skip
            numbers = {
                name: value
                for name, value in logs.items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
            cpu_s = round(time.process_time() - started_s, 2)
            with (directory / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "cpu_s": cpu_s, **numbers}) + "\n")
            if state.global_step % max(1, state.max_steps // 10) < args.logging_steps:
                shown = "  ".join(f"{name} {numbers[name]:.3g}" for name in SHOWN if name in numbers)
                print(f"step {state.global_step}/{state.max_steps}  {shown}", flush=True)
            for name, value in numbers.items():
                writer.add_scalar(name, value, state.global_step)

        def on_train_end(self, *event: object, **more: object) -> None:
            writer.close()

    trainer.add_callback(MetricsWriter())
