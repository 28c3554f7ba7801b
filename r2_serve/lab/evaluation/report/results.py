"""The rows of a run, or of several runs that differ in their seed alone, in the order of their tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r2_serve.lab.evaluation.manifest import MANIFEST, Manifest
from r2_serve.lab.evaluation.rows import EvalRow, merged, read_rows
from r2_serve.lab.runs import RunError
from r2_serve.lab.statistics import Floats

Rows = dict[str, dict[str, EvalRow]]
"""The rows of each policy, by task."""
_OWN = ("seed", "policies", "starts")
"""What the manifests of several seeds may differ in; policies that not all have are left out."""


@dataclass(frozen=True)
class Results:
    """What one run directory holds, or a directory of runs."""

    directories: tuple[Path, ...]
    manifest: Manifest
    seeds: tuple[int, ...]
    by_seed: tuple[Rows, ...]

    def rows(self, policy: str) -> list[list[EvalRow]]:
        """The rows of a policy under each seed."""
        return [list(rows.get(policy, {}).values()) for rows in self.by_seed]

    @property
    def tasks(self) -> set[str]:
        """The ids of all tasks that some policy has begun."""
        return {task for rows in self.by_seed for found in rows.values() for task in found}

    def tasks_with(self, other: Results) -> list[str]:
        """The tasks of this run and another, in order; those of one run are filled up to all of it.

        A task that no policy has begun has no id yet. It counts as not right for all.
        """
        if self is other:
            known = sorted(self.tasks)
            return known + [f"not begun {i}" for i in range(self.manifest.num_tasks - len(known))]
        return sorted(self.tasks & other.tasks)

    def right(self, policy: str, tasks: Sequence[str]) -> Floats:
        """The share of seeds under which each task was answered correctly."""
        return self._means(policy, tasks, lambda row: float(row.status == "correct"))

    def cost_usd(self, policy: str, tasks: Sequence[str]) -> Floats:
        """The mean cost of each task over the seeds."""
        return self._means(policy, tasks, lambda row: float(row.cost_usd))

    def _means(self, policy: str, tasks: Sequence[str], value: Callable[[EvalRow], float]) -> Floats:
        found = [rows.get(policy, {}) for rows in self.by_seed]
        return np.array(
            [sum(value(rows[task]) for rows in found if task in rows) / len(found) for task in tasks]
        )


def read_results(directory: Path) -> Results:
    """Read a run, or a directory whose subdirectories are the runs of several seeds. Raises: RunError."""
    directories = run_directories(directory)
    manifests = [Manifest.read(each) for each in directories]
    for each, manifest in zip(directories[1:], manifests[1:], strict=True):
        if names := _differences(manifests[0], manifest):
            raise RunError(
                f"{each} differs from {directories[0]} in more than its seed ({', '.join(names)}); give the"
                f" runs one by one"
            )
    common = [name for name in manifests[0].policies if all(name in m.policies for m in manifests)]
    return Results(
        directories=directories,
        manifest=manifests[0].model_copy(update={"policies": tuple(common)}),
        seeds=tuple(manifest.seed for manifest in manifests),
        by_seed=tuple(map(_read, directories)),
    )


def run_directories(directory: Path) -> tuple[Path, ...]:
    """The directory itself if it holds a run, else its subdirectories that hold one; itself without any."""
    if (directory / MANIFEST).exists() or not directory.is_dir():
        return (directory,)
    found = tuple(sorted(path.parent for path in directory.glob(f"*/{MANIFEST}")))
    return found or (directory,)


def _read(directory: Path) -> Rows:
    found: Rows = {}
    for row in merged(read_rows(directory)).values():
        found.setdefault(row.policy, {})[row.task_id] = row
    return found


def _differences(one: Manifest, other: Manifest) -> list[str]:
    return [
        name
        for name in type(one).model_fields
        if name not in _OWN and getattr(one, name) != getattr(other, name)
    ]
