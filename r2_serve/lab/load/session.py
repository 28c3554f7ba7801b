"""One load run from end to end: check the endpoint, send, watch, grade, and write what came of it, interrupted or not."""

from __future__ import annotations

import asyncio
import datetime
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import httpx

from r2_serve.client import new_client
from r2_serve.errors import ConfigError, R2Error
from r2_serve.files import write_whole
from r2_serve.lab.load.client import LoadClient
from r2_serve.lab.load.grading import grade_run
from r2_serve.lab.load.monitor import Monitor
from r2_serve.lab.load.open_loop import OpenLoop
from r2_serve.lab.load.records import RequestRecord, TimelineSample
from r2_serve.lab.load.replicas import ReplicaSource
from r2_serve.lab.load.run_directory import (
    REPORT,
    REQUESTS,
    SUMMARY,
    RequestFile,
    claim,
    logs,
    read_timeline,
    under_way,
)
from r2_serve.lab.load.summary import LoadSummary, RunInfo, summarize
from r2_serve.lab.runs import RunError, code_version, machine_line
from r2_serve.lab.workload import Request, Workload
from r2_serve.lab.workload.tasks import BenchmarkTasks, load_benchmark

OnSample = Callable[[TimelineSample], None]
OnEnd = Callable[[RequestRecord], None]


@dataclass(frozen=True)
class LoadOptions:
    """How a workload is sent."""

    out: Path
    api_key: str | None = None
    seed: int | None = None
    """None: the workload's own."""
    max_open: int = 2000
    timeout_s: float = 300.0
    is_streamed: bool = True
    interval_s: float = 1.0
    gpu_usd_per_hour: float = 0.0
    set_aside: bool = False


@dataclass(frozen=True)
class Watcher:
    """Who is told while a run goes."""

    on_sample: OnSample = field(default=lambda _: None)
    on_end: OnEnd = field(default=lambda _: None)


async def run_load(
    workload: Workload,
    url: str,
    options: LoadOptions,
    *,
    replicas: ReplicaSource | None = None,
    watcher: Watcher | None = None,
) -> LoadSummary:
    """Ctrl-C ends it in order: what had ended is written and reported, the rest counts as unfinished.

    Raises: ConfigError, RunError, BenchmarkError; PublishError where replicas cannot be counted at the start.
    """
    if workload.slo.ttft_s is not None and not options.is_streamed:
        raise ConfigError(
            "the workload's slo.ttft_s can only be told of streamed replies: leave --no-stream out"
        )
    requests = _opened(workload, options.seed)
    max_open = options.max_open + 1  # one connection more reads /metrics
    async with new_client(
        url, api_key=options.api_key, max_open=max_open, timeout_s=options.timeout_s
    ) as http:
        client = LoadClient(http, timeout_s=options.timeout_s, is_streamed=options.is_streamed)
        await client.check(workload.tasks.model)
        if replicas is not None:
            await asyncio.to_thread(replicas.read)
        claim(options.out, set_aside=options.set_aside)
        with under_way(options.out):
            info = _info(workload, url, options)
            sent = await _send(client, http, requests, options, replicas, watcher or Watcher())
            info = info.model_copy(
                update={"blocked_s": sent.blocked_s, "is_interrupted": sent.is_interrupted}
            )
            return await _reported(workload, options.out, info, sent.fault)


async def _reported(workload: Workload, out: Path, info: RunInfo, fault: R2Error | None) -> LoadSummary:
    """Grades and sums up what there is. Raises: `fault`, or what grading fails with, once that is written."""
    told = "the run ended there"
    if isinstance(workload.tasks, BenchmarkTasks):
        try:
            await grade_run(out, {task.id: task for task in load_benchmark(workload.tasks)})
        except R2Error as e:
            fault, told = fault or e, "nothing was graded"
    try:
        summary = write_summary(out, info)
    except OSError as e:
        raise fault or RunError(
            f"{out}: {e.strerror or e}; the requests that had ended are in {REQUESTS}"
        ) from e
    if fault is not None:
        raise type(fault)(f"{fault.message}\n{told}; {summary.num_ok} answers are reported in {out}")
    return summary


@dataclass(frozen=True)
class _Sent:
    """How sending went."""

    blocked_s: float
    """Every connection was taken for so long."""
    is_interrupted: bool
    fault: R2Error | None = None


async def _send(
    client: LoadClient,
    http: httpx.AsyncClient,
    requests: Iterator[Request],
    options: LoadOptions,
    replicas: ReplicaSource | None,
    watcher: Watcher,
) -> _Sent:
    """Every request, or those up to an interruption."""
    with logs(options.out) as written:

        def on_end(record: RequestRecord) -> None:
            written.requests.append(record)
            watcher.on_end(record)

        def on_sample(sample: TimelineSample) -> None:
            written.timeline.append(sample)
            watcher.on_sample(sample)

        loop = OpenLoop(client, max_open=options.max_open, on_end=on_end)
        sending = asyncio.create_task(loop.run(requests))
        monitor = Monitor(loop, http, replicas, options.interval_s, on_sample)
        watching = asyncio.create_task(monitor.run())
        try:
            with _interrupting(sending), suppress(asyncio.CancelledError):
                await sending
        except BaseExceptionGroup as e:
            return _Sent(loop.counts.blocked_s, is_interrupted=True, fault=_fault(e))
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        await monitor.look()
        return _Sent(loop.counts.blocked_s, is_interrupted=sending.cancelled())


def _fault(group: BaseExceptionGroup[BaseException]) -> R2Error:
    """What ended a run before its time: a trace's bad row, a full disk. Raises: `group`, where it is none of our own errors."""
    told = group.subgroup(R2Error)
    if told is None:
        raise group
    fault: BaseException = told
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    assert isinstance(fault, R2Error), "of the subgroup"
    return fault


@contextmanager
def _interrupting(task: asyncio.Task[None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM cancel `task`, where signals can be caught: in a process's main thread."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, task.cancel)
    except (RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def write_summary(directory: Path, info: RunInfo) -> LoadSummary:
    """`summary.json`, and `report.html` where matplotlib is installed. Raises: RunError."""
    records, timeline = RequestFile(directory), list(read_timeline(directory))
    summary = summarize(info, records, timeline)
    write_whole(directory / SUMMARY, summary.model_dump_json(indent=2))
    with suppress(ImportError):
        from r2_serve.lab.load.page import page

        write_whole(directory / REPORT, page(summary, records, timeline))
    return summary


def _opened(workload: Workload, seed: int | None) -> Iterator[Request]:
    """The requests, of which the first is drawn: files are read, and found wanting, before the clock starts."""
    requests = workload.requests(seed)
    first = next(requests, None)
    if first is None:
        raise ConfigError(
            f"workload {workload.name!r} sends nothing: is its duration_s too short, or its trace empty?"
        )
    return chain([first], requests)


def _info(workload: Workload, url: str, options: LoadOptions) -> RunInfo:
    return RunInfo(
        workload=workload.name,
        seed=workload.seed if options.seed is None else options.seed,
        url=url,
        model=workload.tasks.model,
        slo=workload.slo,
        duration_s=workload.duration_s,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        machine=machine_line(),
        max_open=options.max_open,
        gpu_usd_per_hour=options.gpu_usd_per_hour,
    )
