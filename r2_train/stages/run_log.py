"""What training tells of itself: metrics of every stage as JSON lines and for TensorBoard, under one run directory."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r2_serve.lab.jsonl import whole_lines
from r2_train.launch.stage_run import StageRun

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


SHOWN = ("loss", "reward", "accuracy", "well_formed", "cost_ratio", "frac_reward_zero_std")


def quiet_libraries() -> None:
    """No bars of libraries for work of milliseconds: what training tells is told here."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def attach_log(trainer: Any, run: StageRun) -> None:
    """What the trainer logs goes to `metrics.jsonl` and `tensorboard` in the stage's directory, and ten lines of it to the terminal."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if run.is_first:
        trainer.add_callback(_write_logs(run.directory))


def append_metrics(path: Path, row: Mapping[str, object]) -> None:
    """One line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row)) + "\n")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read every whole line."""
    return map(json.loads, whole_lines(path))


def _write_logs(directory: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback

    class WriteLogs(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        """Numbers only; a value that is not finite is left out, as JSON has no word for it."""

        def __init__(self) -> None:
            self.started_s = time.process_time()
            self.writer = SummaryWriter(str(directory / TENSORBOARD))

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any
        ) -> None:
            numbers = {
                name: value
                for name, value in (logs or {}).items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
            append_metrics(
                directory / METRICS,
                {
                    "step": state.global_step,
                    "cpu_s": round(time.process_time() - self.started_s, 2),
                    **numbers,
                },
            )
            if state.global_step % max(1, state.max_steps // 10) < args.logging_steps:
                shown = "  ".join(f"{name} {numbers[name]:.3g}" for name in SHOWN if name in numbers)
                print(f"step {state.global_step}/{state.max_steps}  {shown}", flush=True)
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.writer.close()

    return WriteLogs()
