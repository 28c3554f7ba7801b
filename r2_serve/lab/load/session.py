"""One load run: check the endpoint, send, watch, grade, and write the results, also of an interrupted run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import httpx

from r2_serve.client import new_client
from r2_serve.errors import ConfigError, R2Error
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import Task
from r2_serve.lab.jsonl import rewrite_jsonl
from r2_serve.lab.load.client import LoadClient
from r2_serve.lab.load.failing import Kill
from r2_serve.lab.load.monitor import Monitor
from r2_serve.lab.load.open_loop import OpenLoop
from r2_serve.lab.load.records import LoadRecord, TimelineSample
from r2_serve.lab.load.replicas import ReadReplicas
from r2_serve.lab.load.run_directory import (
    REQUESTS,
    STARTS,
    RequestFile,
    claim,
    logs,
    read_timeline,
    under_way,
    write_report,
)
from r2_serve.lab.load.summary import LoadSummary, RunInfo, summarize
from r2_serve.lab.runs import RunError
from r2_serve.lab.workload import Request, Workload
from r2_serve.lab.workload.tasks import BenchmarkTasks, load_benchmark
from r2_serve.scaling.cold_starts import ColdStart, read_starts


@dataclass(frozen=True)
class LoadOptions:
    """Options of a run besides its workload."""

    out: Path
    api_key: str | None = None
    seed: int | None = None
    """Seed in place of the workload's own."""
    max_open: int = 2000
    timeout_s: float = 300.0
    is_streamed: bool = True
    interval_s: float = 1.0
    """Time between two samples of queue and replicas."""
    gpu_usd_per_hour: float = 0.0
    node_idle_timeout_s: float | None = None
    """The one of `RunInfo`."""
    set_aside: bool = False


@dataclass(frozen=True)
class Target:
    """The endpoint that gets the load, and what is known of its cluster."""

    url: str
    replicas: ReadReplicas | None = None
    """Counts its replicas; None if they cannot be counted."""
    kill: Kill | None = None
    """Makes failures happen; None on a cluster that this process has not started."""
    starts: Callable[[], list[ColdStart]] | None = None
    """Reads the cold starts so far; None on a cluster that this process has not started."""


@dataclass(frozen=True)
class Watcher:
    """Receives the samples and the ended requests of a run while it goes."""

    on_sample: Callable[[TimelineSample], None] = field(default=lambda _: None)
    on_end: Callable[[LoadRecord], None] = field(default=lambda _: None)


async def run_load(
    workload: Workload, target: Target, options: LoadOptions, watcher: Watcher | None = None
) -> LoadSummary:
    """Sends `workload` to `target` and reports.

    After ctrl-C, requests under way count as unfinished, and the others are reported.

    Raises: ConfigError, RunError, BenchmarkError; ServeApiError if replicas cannot be counted at the start.
    """
    if workload.slo.ttft_s is not None and not options.is_streamed:
        raise ConfigError("the workload's slo.ttft_s needs streamed replies: leave --no-stream out")
    if workload.failures and target.kill is None:
        raise ConfigError("the workload has failures: they happen on a local cluster only (--config)")
    requests = _opened(workload, options.seed)
    num_connections = options.max_open + 1  # one more reads /metrics
    async with new_client(
        target.url, api_key=options.api_key, max_open=num_connections, timeout_s=options.timeout_s
    ) as http:
        client = LoadClient(http, timeout_s=options.timeout_s, is_streamed=options.is_streamed)
        await client.check(workload.tasks.model)
        if target.replicas is not None:
            await asyncio.to_thread(target.replicas)
        claim(options.out, set_aside=options.set_aside)
        with under_way(options.out):
            info = RunInfo.of(
                workload,
                target.url,
                seed=options.seed,
                gpu_usd_per_hour=options.gpu_usd_per_hour,
                max_open=options.max_open,
                node_idle_timeout_s=options.node_idle_timeout_s,
            )
            async with _failing(workload, target.kill):
                sent = await _send(client, http, requests, options, target.replicas, watcher or Watcher())
            if target.starts is not None and (found := await asyncio.to_thread(target.starts)):
                write_whole(options.out / STARTS, "\n".join(start.line() for start in found))
            outcome = {"blocked_s": sent.blocked_s, "is_interrupted": sent.is_interrupted}
            return await _reported(workload, options.out, info.model_copy(update=outcome), sent.fault)


@asynccontextmanager
async def _failing(workload: Workload, kill: Kill | None) -> AsyncIterator[None]:
    """Makes the workload's failures happen at their times while the context lasts."""
    began_at = asyncio.get_running_loop().time()

    async def fail() -> None:
        for failure in sorted(workload.failures, key=lambda failure: failure.at_s):
            await asyncio.sleep(began_at + failure.at_s - asyncio.get_running_loop().time())
            assert kill is not None
            await asyncio.to_thread(kill, failure)

    task = asyncio.create_task(fail())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _reported(workload: Workload, out: Path, info: RunInfo, fault: Exception | None) -> LoadSummary:
    """Grades and sums up what there is, and then raises `fault` or the error of the grading."""
    end = "the run ended there"
    if isinstance(workload.tasks, BenchmarkTasks):
        try:
            await _grade(out, {task.id: task for task in load_benchmark(workload.tasks)})
        except R2Error as e:
            fault, end = fault or e, "nothing was graded"
    try:
        summary = write_summary(out, info)
    except OSError as e:
        ended = f"the requests that had ended are in {REQUESTS}"
        raise fault or RunError(f"{out}: {e.strerror or e}; {ended}") from e
    if isinstance(fault, R2Error):
        raise type(fault)(f"{fault.message}\n{end}; {summary.num_ok} answers are reported in {out}")
    if fault is not None:
        raise fault
    return summary


async def _grade(directory: Path, tasks: Mapping[str, Task]) -> None:
    """Writes verdicts into `requests.jsonl`; `tasks` is by id. Raises: RunError, SandboxUnavailable."""

    async def graded(record: LoadRecord) -> LoadRecord:
        if record.answer is None or record.task_id is None:
            return record
        task = tasks[record.task_id]
        verdict = await grader.judge(task, record.answer)
        return record.model_copy(update={"correct": verdict.correct})

    async with Grader() as grader:
        await rewrite_jsonl(directory / REQUESTS, RequestFile(directory), graded)


@dataclass(frozen=True)
class _Sent:
    """The end of the sending."""

    blocked_s: float
    is_interrupted: bool
    fault: Exception | None = None


async def _send(
    client: LoadClient,
    http: httpx.AsyncClient,
    requests: Iterator[Request],
    options: LoadOptions,
    replicas: ReadReplicas | None,
    watcher: Watcher,
) -> _Sent:
    """Sends every request, or those up to an interruption or a fault."""
    with logs(options.out) as written:

        def on_end(record: LoadRecord) -> None:
            written.requests.append(record)
            watcher.on_end(record)

        def on_sample(sample: TimelineSample) -> None:
            written.timeline.append(sample)
            watcher.on_sample(sample)

        loop = OpenLoop(client, max_open=options.max_open, on_end=on_end)
        monitor = Monitor(loop, http, replicas, options.interval_s, on_sample)
        sending, watching = asyncio.create_task(loop.run(requests)), asyncio.create_task(monitor.run())
        with suppress(asyncio.CancelledError), _interrupting(sending):
            await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, watching):
            task.cancel()
        await asyncio.wait((sending, watching))
        faults = [task.exception() for task in (sending, watching) if not task.cancelled()]
        if any(faults):
            return _Sent(loop.counts.blocked_s, is_interrupted=True, fault=_first_fault(faults))
        await monitor.look()
        return _Sent(loop.counts.blocked_s, is_interrupted=sending.cancelled())


def _first_fault(errors: list[BaseException | None]) -> Exception:
    """The error that ended a run early: one of our own, such as a full disk, before any other."""
    group = BaseExceptionGroup("", [error for error in errors if error is not None])
    fault: BaseException = group.subgroup(R2Error) or group
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    if not isinstance(fault, Exception):
        raise fault
    return fault


@contextmanager
def _interrupting(task: asyncio.Task[None]) -> Iterator[None]:
    """Lets ctrl-C and SIGTERM cancel `task`, in a process's main thread, where signals can be caught."""
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
    """Writes the report of what is in `directory`. Raises: RunError, OSError."""
    records, timeline = RequestFile(directory), list(read_timeline(directory))
    starts = read_starts(directory / STARTS) if (directory / STARTS).exists() else ()
    summary = summarize(info, records, timeline, starts)
    write_report(directory, summary, records, timeline)
    return summary


def _opened(workload: Workload, seed: int | None) -> Iterator[Request]:
    """The requests. The first is drawn here, so that faults in files show before the clock starts."""
    requests = workload.requests(seed)
    first = next(requests, None)
    if first is None:
        raise ConfigError(nothing_sent(workload))
    return chain([first], requests)


def nothing_sent(workload: Workload) -> str:
    return f"workload {workload.name!r} sends nothing: is its duration_s too short, or its trace empty?"
