"""Runs the cells that are not done, one after another, each in its own process, and shows the progress."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from r2_serve.errors import ConfigError, counted
from r2_serve.lab.experiment.cells import OUTPUT, Cell
from r2_serve.lab.experiment.clusters import Site, command, simulate_cell
from r2_serve.lab.experiment.config import Experiment, LoadedExperiment
from r2_serve.lab.load.progress import counts_line, run_bars
from r2_serve.lab.load.records import TimelineSample
from r2_serve.lab.load.run_directory import TIMELINE, claim

_POLL_S = 0.5
_SHOWN_BYTES = 4_000
Show = Callable[[str, float], None]
"""Shows a line about the running cell, and the seconds of it that are over."""


class CellFailed(ConfigError):
    """A cell's command ended without figures. The message has its output; finished cells are kept."""


def to_run(cells: Sequence[Cell], *, set_aside: bool) -> list[Cell]:
    """The cells that are not done.

    Raises: ConfigError if one holds figures of another config, workload or code, unless `set_aside`.
    """
    others = [cell for cell in cells if cell.is_other()]
    if others and not set_aside:
        raise ConfigError(
            f"{others[0].directory} (of {counted(len(others), 'such cell')}) holds a run of another config, "
            "workload or code: choose another --out, or run them again with --set-aside, which keeps those"
        )
    return [cell for cell in cells if cell in others or cell.summary() is None]


def run_cells(
    cells: Sequence[Cell], num_all: int, site: Site, experiment: Experiment, console: Console
) -> None:
    """Runs `cells`. Raises: CellFailed, ServeApiError; KeyboardInterrupt once the running cell has ended."""
    with run_bars(console) as bars:
        for number, cell in enumerate(cells, num_all - len(cells) + 1):
            title, duration_s = f"{number}/{num_all} {cell.title}", cell.workload.duration_s
            bar = bars.add_task(title, total=duration_s, standing="preparing")
            site.prepare(cell)
            bars.update(bar, standing="starting")
            run_cell(cell, site, experiment, partial(_show, bars, bar))
            share = summary.slo_attainment if (summary := cell.summary()) is not None else None
            standing = "-" if share is None else f"{100 * share:.1f} % in time"
            bars.update(bar, standing=standing, completed=duration_s)
            bars.stop_task(bar)


def simulate_cells(cells: Sequence[Cell], num_all: int, loaded: LoadedExperiment, console: Console) -> None:
    """Simulates `cells`. Raises: ConfigError."""
    with run_bars(console) as bars:
        bar = bars.add_task("simulating", total=num_all, completed=num_all - len(cells), standing="")
        for cell in cells:
            bars.update(bar, standing=cell.title)
            simulate_cell(cell, loaded)
            bars.advance(bar)


def _show(bars: Progress, bar: TaskID, line: str, t_s: float) -> None:
    bars.update(bar, standing=line, completed=t_s)


def run_cell(cell: Cell, site: Site, experiment: Experiment, show: Show) -> None:
    """Runs one cell; earlier contents of its directory are put aside.

    Raises: CellFailed; KeyboardInterrupt once the cell's process has ended.
    """
    claim(cell.directory, set_aside=True)
    cell.mark()
    arguments = command(cell, site, experiment)
    log = cell.directory.with_name(f"{cell.directory.name}.{OUTPUT}")
    with log.open("wb") as output:
        output.write(f"$ {shlex.join(arguments)}\n".encode())
        output.flush()
        process = subprocess.Popen(  # our own command, made above  # noqa: S603  # nosec B603
            arguments,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=site.environment(cell),
            start_new_session=True,  # ctrl-C reaches it once, from here, however this process was interrupted
        )
        try:
            _follow(process, cell.directory / TIMELINE, show)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)  # it ends in order
            with suppress(KeyboardInterrupt):
                process.wait()
            process.kill()  # at the second ctrl-C
            process.wait()
            raise
    if cell.summary() is None:
        end = log.read_bytes()[-_SHOWN_BYTES:].decode(errors="replace").strip()
        raise CellFailed(
            f"{cell.title} ended without figures (status {process.returncode}); its output, {log}:\n{end}"
        )
    log.replace(cell.directory / OUTPUT)


def _follow(process: subprocess.Popen[bytes], timeline: Path, show: Show) -> None:
    started = time.time()
    while process.poll() is None:
        time.sleep(_POLL_S)
        is_new = timeline.exists() and timeline.stat().st_mtime > started
        if is_new and (sample := _last_sample(timeline)) is not None:
            show(counts_line(sample), sample.t_s)


def _last_sample(timeline: Path) -> TimelineSample | None:
    *_, last, rest = [b"", *timeline.read_bytes().split(b"\n")]
    return TimelineSample.model_validate_json(last) if last and not rest else None
