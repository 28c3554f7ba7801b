"""Ends a GRPO stage whose reward no longer differs in any group of replies: nothing is learned from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from r2_serve.types import Record

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

STOPPED = "stopped.json"


class Stopped(Record):
    """Why a stage ended before its last step."""

    step: int
    reason: str
    is_hopeless: bool
    """True if no reply was right, so that there is no result. Otherwise the module has converged."""


def read_stopped(directory: Path) -> Stopped | None:
    """None if the stage in `directory` took all its steps."""
    path = directory / STOPPED
    return Stopped.model_validate_json(path.read_text()) if path.exists() else None


class StopWhenFlat(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Stops after `max_flat_steps` steps in which every reply of each group had the same reward.

    Every rank sees the same means over all ranks, so all stop at the same step.
    """

    def __init__(self, directory: Path, max_flat_steps: int | None) -> None:
        self.stopped: Stopped | None = None
        self._path, self._limit = directory / STOPPED, max_flat_steps
        self._num_flat, self._accuracy = 0, 0.0
        self._path.unlink(missing_ok=True)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: Mapping[str, float], **more: object,
    ) -> None:  # fmt: skip
        if self._limit is None or "frac_reward_zero_std" not in logs:
            return
        is_flat = logs["frac_reward_zero_std"] >= 1
        self._num_flat = self._num_flat + args.logging_steps if is_flat else 0
        self._accuracy = max(self._accuracy, logs.get("accuracy", 0.0)) if is_flat else 0.0
        if self._num_flat >= self._limit and self.stopped is None:
            reason, is_hopeless = self._why(logs), self._accuracy == 0
            self.stopped = Stopped(step=state.global_step, reason=reason, is_hopeless=is_hopeless)
            control.should_training_stop = True
            if state.is_world_process_zero:
                self._path.write_text(self.stopped.model_dump_json(indent=2) + "\n")

    def _why(self, logs: Mapping[str, float]) -> str:
        causes = {name.removeprefix("invalid/"): value for name, value in logs.items() if "invalid/" in name}
        reasons = ", ".join(f"{cause} {100 * share:.0f} %" for cause, share in sorted(causes.items()))
        return (
            f"for {self._num_flat} steps all replies to each prompt earned the same reward "
            f"({logs['reward']:.3g} on average), so there is nothing to learn: "
            f"{100 * logs.get('well_formed', 0):.0f} % of the replies are well-formed, "
            f"{100 * logs.get('accuracy', 0):.0f} % right"
            + (f"; invalid replies: {reasons}" if reasons else "")
        )
