"""A simulated run on disk: the same directory that `r2-serve load` writes, with `simulation.json` beside.

requests.jsonl, timeline.jsonl, summary.json, report.html   as `r2_serve.lab.load.run_directory`
simulation.json                                             what only a simulation knows: decisions, paid GPUs, its own speed
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from r2_serve.files import write_whole
from r2_serve.lab.jsonl import replacing_jsonl
from r2_serve.lab.load.records import RequestRecord
from r2_serve.lab.load.run_directory import REPORT, SUMMARY, TIMELINE, rewriting_requests
from r2_serve.lab.load.summary import LoadSummary, RunInfo, summarize
from r2_serve.lab.runs import code_version, machine_line
from r2_serve.lab.simulate.hardware import Hardware
from r2_serve.lab.simulate.results import Run
from r2_serve.lab.workload import Workload
from r2_serve.types import Record

SIMULATION = "simulation.json"
LARGEST_PAGE = 200_000
"""Requests of which a page is drawn."""


class SimulationFacts(Record):
    """See the module's text."""

    num_decisions: dict[str, int]
    paid_gpu_s: float
    paid_usd: float
    num_events: int
    num_subtasks: int
    wall_s: float
    hardware: Hardware


def run_info(workload: Workload, seed: int | None, hardware: Hardware) -> RunInfo:
    """As of a real run; `url` says that it is none."""
    return RunInfo(
        workload=workload.name,
        seed=workload.seed if seed is None else seed,
        url="simulated",
        model=workload.tasks.model,
        slo=workload.slo,
        duration_s=workload.duration_s,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        machine=machine_line(),
        max_open=0,
        gpu_usd_per_hour=hardware.cluster.gpu_usd_per_hour,
    )


def write_run(
    directory: Path, info: RunInfo, run: Run, *, hardware: Hardware, has_rows: bool = True
) -> LoadSummary:
    """Everything; `requests.jsonl` and the page only where `has_rows`."""
    summary = summarize(info, run.queries.records(), run.timeline)
    with replacing_jsonl(directory / TIMELINE) as write:
        for sample in run.timeline:
            write(sample)
    write_whole(directory / SUMMARY, summary.model_dump_json(indent=2))
    write_whole(directory / SIMULATION, _facts(run, hardware).model_dump_json(indent=2))
    if has_rows:
        with rewriting_requests(directory) as write:
            for record in run.queries.records():
                write(record)
        _write_page(directory, summary, list(run.queries.records()), run)
    return summary


def _write_page(directory: Path, summary: LoadSummary, records: Iterable[RequestRecord], run: Run) -> None:
    if summary.num_sent <= LARGEST_PAGE:
        with suppress(ImportError):
            from r2_serve.lab.load.page import page

            write_whole(directory / REPORT, page(summary, records, run.timeline))


def _facts(run: Run, hardware: Hardware) -> SimulationFacts:
    return SimulationFacts(
        num_decisions=run.num_decisions,
        paid_gpu_s=run.paid_gpu_s,
        paid_usd=run.paid_usd,
        num_events=run.num_events,
        num_subtasks=run.num_subtasks,
        wall_s=run.wall_s,
        hardware=hardware,
    )
