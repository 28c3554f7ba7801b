"""`r2-serve compare`: a candidate on trial against the present router; it may promote or withdraw it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.errors import ConfigError
from r2_serve.feedback import counting, read_scores, scores_beside
from r2_serve.files import write_whole
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.publishing.options import (
    DEFAULT_DASHBOARD,
    ConfigOption,
    DashboardOption,
    RayServiceOption,
    TimeoutOption,
    VirtualOption,
)
from r2_serve.ops.publishing.plan import Pool
from r2_serve.ops.publishing.rayservice import Target
from r2_serve.ops.publishing.steps import ConfigFile, end_trial
from r2_serve.ops.publishing.trial import plan_end
from r2_serve.traces import read_traces
from r2_serve.types import GraderName, Trace

if TYPE_CHECKING:
    from r2_serve.ops.publishing.compare import Report
    from r2_serve.router.trial_evidence import Comparison

TABLE_COLUMNS = 112
"""Width of the table, whose figures are never cut."""
LOOKS = 10
"""Looks that the confidence of `--watch` is shared over (Bonferroni)."""
STATUS = {"no worse": 0, "worse": 1, "open": 3}
"""The exit status of each verdict; 2 is that of a wrong command line."""


class GraderChoice(StrEnum):
    """How answers are compared."""

    text = "text"
    number = "number"
    choice = "choice"
    literal = "literal"
    math = "math"


def compare(
    config: ConfigOption = DEFAULT_CONFIG,
    virtual_model: VirtualOption = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(help="Trace directory; repeat for several machines. Default: `server.trace_dir`."),
    ] = None,
    feedback: Annotated[
        list[Path] | None, typer.Option(help="File of scores; default: those beside the traces.")
    ] = None,
    grader: Annotated[
        GraderChoice, typer.Option("--grader", "-g", help="How an answer is read to be compared.")
    ] = GraderChoice.text,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Confidence of intervals.")] = 0.95,
    act: Annotated[
        bool, typer.Option("--act", help="Promote a candidate that is no worse; withdraw one that is worse.")
    ] = False,
    watch_s: Annotated[
        float | None,
        typer.Option("--watch", min=1, help="Look again after so many seconds until there is a verdict."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    rayservice: RayServiceOption = None,
    timeout_s: TimeoutOption = 600.0,
) -> None:
    """Compare a candidate on trial with the present router: accuracy proxies, cost and time, with intervals.

    The candidate is no worse if each interval lies within its margin (`rollouts.NAME.margins`), and worse if
    one lies wholly beyond it. Exit status: 0 no worse, 1 worse, 3 not known yet.

    \b
    Example:  r2-serve compare --config serve_config.yaml
              r2-serve compare --config serve_config.yaml --act --watch 300
    """
    from rich.console import Console

    with plain_errors():
        console, seen = Console(markup=False), 0
        console.width = max(console.width, TABLE_COLUMNS)
        while True:
            level = confidence if watch_s is None else 1 - (1 - confidence) / LOOKS
            reports = list(_reports(config, virtual_model, traces, feedback, grader.value, level))
            num = min(report.num_candidate for report in reports)
            has_grown = watch_s is None or num >= 2 * seen
            if has_grown:
                seen = num
                for report in reports:
                    _print(report, console)
                if json_file is not None:
                    write_whole(json_file, reports[0].model_dump_json(indent=2))
                if act:
                    _act(reports, config, Target(dashboard, rayservice, timeout_s))
            verdicts = {report.verdict for report in reports}
            if watch_s is None or (has_grown and "open" not in verdicts):
                break
            virtual_model = [
                report.virtual_model for report in reports if report.verdict == "open" or not act
            ]
            time.sleep(watch_s)
    raise typer.Exit(max(STATUS[verdict] for verdict in verdicts))


def _reports(
    config: Path,
    virtual_models: list[str] | None,
    traces: list[Path] | None,
    feedback: list[Path] | None,
    grader: GraderName,
    confidence: float,
) -> Iterator[Report]:
    from r2_serve.grading.answers import reader
    from r2_serve.ops.publishing.compare import Evidence, report_of

    file = Pool(ConfigFile(config).original)
    directories = traces or ([Path(file.trace_dir)] if file.trace_dir else [])
    if not directories:
        raise ConfigError("no traces to compare: set server.trace_dir, or give --traces")
    found = [trace for directory in directories for trace in _traces_of(directory)]
    named = feedback or ([Path(file.feedback_file)] if file.feedback_file and not traces else [])
    files = named or [beside for each in directories if (beside := scores_beside(each))]
    scores = counting(score for path in files if path.is_file() for score in read_scores(path))
    rollouts = file.rollouts
    for name in virtual_models or rollouts:
        if name not in rollouts:
            raise ConfigError(f"no candidate of {name!r} is on trial: `r2-serve publish --shadow 0.05`")
        evidence = Evidence.of(found, name, rollouts[name].candidate)
        yield report_of(evidence, name, rollouts[name], scores, reader(grader), confidence)
    if not rollouts:
        raise ConfigError(f"no candidate is on trial in {config}: `r2-serve publish --shadow 0.05`")


def _traces_of(directory: Path) -> Iterator[Trace]:
    try:
        yield from read_traces(directory)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _act(reports: list[Report], config: Path, target: Target) -> None:
    """Promote or withdraw each candidate that has a verdict."""
    for report in reports:
        if report.verdict == "open":
            continue
        action = "promoted" if report.verdict == "no worse" else "withdrawn"
        file = ConfigFile(config)
        pool = Pool(file.original)
        plan = plan_end(
            file.original,
            "promoted" if action == "promoted" else "withdrawn",
            pool.router_app,
            pool.rollouts,
            [report.virtual_model],
        )
        Pool(plan.routed)
        with target.reached() as cluster:
            end_trial(plan, file, cluster, typer.echo)


def _print(report: Report, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    head = f"{report.candidate} for {report.virtual_model}: {report.verdict}"
    for arm, rows in (("canary", report.canary), ("shadow", report.shadow)):
        if not rows:
            continue
        table = Table(title=f"{head} ({arm}, {100 * report.confidence:g} % intervals)", title_justify="left")
        for column in ("", "queries", "now", arm, "difference", "interval", "margin", "verdict"):
            table.add_column(column, justify="left" if column in ("", "verdict") else "right")
        for row in rows:
            table.add_row(*_cells(row))
        console.print(table)
    if not report.canary and not report.shadow:
        console.print(f"{head}: no query of the candidate yet")
    for arm, latency in report.latency.items():
        console.print(f"{arm}: p50 {latency.p50:.3f} s, p95 {latency.p95:.3f} s")
    if report.shadow:
        console.print(f"shadows have cost {report.shadow_usd:.6f} USD")


def _cells(row: Comparison) -> tuple[str, ...]:
    low, high = row.interval
    return (
        {"cost": "USD a query", "score": "score of feedback"}.get(row.metric, row.metric),
        f"{row.num_incumbent}, {row.num_candidate}",
        "-" if row.incumbent is None else _shown(row, row.incumbent),
        _shown(row, row.candidate),
        f"{100 * row.difference:+.2f} %",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        f"{100 * row.margin:g} %",
        row.verdict,
    )


def _shown(row: Comparison, value: float) -> str:
    return f"{value:.6g}" if row.metric in ("cost", "seconds") else f"{100 * value:.2f} %"
