"""Reads a workload file: everything wrong with it at once, each with its line."""

from __future__ import annotations

from pathlib import Path

from r2_serve.errors import ConfigError
from r2_serve.lab.workload.arrivals import TraceArrivals
from r2_serve.lab.workload.tasks import BenchmarkTasks
from r2_serve.lab.workload.workload import Workload
from r2_serve.serve_config.document import suggestion
from r2_serve.serve_config.sections import read_file

EXAMPLES = Path(__file__).parent / "examples"
SCRIPTED_POOL = EXAMPLES / "pool" / "serve_config.yaml"
"""Serve config of the models that the synthetic examples name."""


def load_workload(path: Path) -> Workload:
    """The workload at `path`; files that it names are looked for beside it. Raises: ConfigError listing every error."""
    return _beside(read_file(path, Workload), path.parent)


def example_names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


def example_path(name: str) -> Path:
    """The shipped workload of that name. Raises: ConfigError."""
    if name not in example_names():
        raise ConfigError(f"no example workload {name!r}{suggestion(name, example_names())}")
    return EXAMPLES / f"{name}.yaml"


def _beside(workload: Workload, directory: Path) -> Workload:
    arrivals, tasks = workload.arrivals, workload.tasks
    if isinstance(arrivals, TraceArrivals):
        arrivals = arrivals.model_copy(update={"path": str(directory / arrivals.path)})
    if isinstance(tasks, BenchmarkTasks) and (directory / tasks.dataset).exists():
        tasks = tasks.model_copy(update={"dataset": str(directory / tasks.dataset)})
    return workload.model_copy(update={"arrivals": arrivals, "tasks": tasks})
