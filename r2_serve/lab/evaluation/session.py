"""What the commands do: they put tasks, router, grader and runner together, and write reports into files.

This is the only module of evaluation that knows where things come from; the runner and the report are given
them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from r2_serve.calls.pool import EngineFor, in_process_engines
from r2_serve.client import new_client
from r2_serve.config import Config, VirtualModelConfig
from r2_serve.errors import ConfigError, counted
from r2_serve.files import write_whole
from r2_serve.grading.graders import Grader
from r2_serve.grading.rows import BenchmarkName, Task
from r2_serve.lab.evaluation.asker import Asker, HttpAsker, InProcessAsker
from r2_serve.lab.evaluation.benchmarks import Split, is_generated, load_tasks, sample_tasks, split_tasks
from r2_serve.lab.evaluation.booked import BookedAsker, Keeper, booked_engines, opened
from r2_serve.lab.evaluation.desk import EvalPolicy, Setting
from r2_serve.lab.evaluation.manifest import (
    BOOK,
    HOSTED_KINDS,
    Manifest,
    Revision,
    config_sha256,
    data_sha256,
    default_virtual_model,
    pool_models,
    prices_sha256,
    queries_sha256,
    set_aside_other_run,
    setting_of,
    started,
)
from r2_serve.lab.evaluation.policies import ALL, R2, PolicyConfig
from r2_serve.lab.evaluation.policy_names import (
    all_policies,
    fixed,
    named_models,
    parse_policy,
    without_confidence,
)
from r2_serve.lab.evaluation.progress import counting, progress_of
from r2_serve.lab.evaluation.revising import Cards, grade_book, regrade_rows, reprice_book, reprice_rows
from r2_serve.lab.evaluation.rows import ROWS, EvalRow
from r2_serve.lab.evaluation.runner import Examiner, RowSource, Runner, RunOptions, Standing, Work
from r2_serve.lab.evaluation.tuning import (
    FEWEST_TASKS,
    Tuning,
    read_tuning,
    spelt_out,
    tune,
    tuned_names,
    write_tuning,
)
from r2_serve.lab.reports.terminal import usd
from r2_serve.lab.runs import code_version
from r2_serve.serve_config import ServeConfig, load


class EvalRequest(Config):
    """One `r2-serve eval run`."""

    benchmark: BenchmarkName
    grader: str | None = None
    policies: tuple[str, ...]
    data: str
    out: Path
    limit: int | None = None
    split: Split | None = None
    """None stands for `test`, but for all of a generated split, which is one side already."""
    config: Path
    url: str | None = None
    api_key: str | None = None
    virtual_model: str | None = None
    seed: int = 0
    engine: Literal["asyncio", "ray-data"] = "asyncio"
    policy_config: PolicyConfig = PolicyConfig()
    options: RunOptions = RunOptions()
    book: Path | None = None
    """The book that is read and written; None for `book.jsonl` in `out`."""
    revised: tuple[Revision, ...] = ()
    """What is computed again for the rows in `out`, without a model call."""
    num_tuning_tasks: int = 100
    """Development tasks on which `dot:tuned` and its like are chosen."""
    set_aside_other_run: bool = False
    """If `out` holds another run, move that to `out`.1 (.2, ...) and start anew, instead of refusing."""


async def run_session(request: EvalRequest, console: Console) -> Standing:
    """Carry out a run, or go on with it. Raises: R2Error."""
    config = load(request.config)
    virtual_model = request.virtual_model or default_virtual_model(config.routing, request.benchmark)
    setting = setting_of(config.router, config.routing, virtual_model, request.seed)
    names = policy_names(request.policies, setting, request.policy_config)
    wanted = "test" if tuned_names(names) and request.split is None else request.split
    tasks, split = select_tasks(request.benchmark, request.data, wanted, request.limit, request.grader)
    names, tuning = await _tuned(request, config, setting, names, split, console)
    manifest = _manifest(request, config, setting, names, tasks, split)
    source = _source(request, setting)
    if ALL in request.policies and (kinds := without_confidence(setting)):
        mute = ", ".join(sorted(setting.mute & set(setting.pool)))
        _say(console, f"left out of `all`: {', '.join(kinds)}, as {mute} report no log-probabilities")
    is_halved = split == "test" and request.split is None
    side = " (the test half of the file: --split all takes all)" if is_halved else ""
    of = counted(len(names), "policy", "policies")
    _say(console, f"{counted(len(tasks), 'task')}{side} x {of}: {', '.join(names)}")
    if request.set_aside_other_run:
        moved = set_aside_other_run(request.out, manifest, tasks, request.revised)
        if moved is not None:
            _say(console, f"{request.out} held another run, which is now in {moved}")
    manifest.joined(request.out, tasks, request.revised)  # before models are loaded in vain
    if tuning is not None:
        write_tuning(request.out, tuning)
    async with Grader() as grader:
        await _revise(request, tasks, setting.cards, grader, console)
        path = request.book or request.out / BOOK
        with opened(path) as keeper:
            async with _asker(request, config, virtual_model, names, keeper) as asker:
                examiner = Examiner(asker, grader, setting)
                with progress_of(request.out.name, console) as on_row:
                    runner = Runner(request.out, manifest, tasks, examiner, request.options, on_row)
                    runner.revised, runner.keeper, runner.source = request.revised, keeper, source
                    standing = await runner.run()
        if keeper.num_asked:
            await grade_book(path, tasks, grader, is_all=False)
    asked = f"asked for {counted(keeper.num_asked, 'reply', 'replies')} ({usd(keeper.asked_usd)})"
    _say(console, f"{asked}, {keeper.num_reused} came from {path}")
    return standing


def _manifest(
    request: EvalRequest,
    config: ServeConfig,
    setting: Setting,
    names: tuple[str, ...],
    tasks: Sequence[Task],
    split: Split,
) -> Manifest:
    return Manifest(
        benchmark=request.benchmark,
        grader=request.grader,
        data=request.data,
        data_sha256=data_sha256(tasks),
        queries_sha256=queries_sha256(tasks),
        num_tasks=len(tasks),
        split=split,
        limit=request.limit,
        policies=names,
        policy_config=request.policy_config,
        seed=request.seed,
        virtual_model=setting.virtual_model,
        pool=setting.pool,
        models=pool_models(config.router),
        prices_sha256=prices_sha256(config.router),
        prices_as_of=config.router.prices_as_of,
        endpoint=request.url,
        config_sha256=config_sha256(config.router, config.routing, config.model_apps),
        code_version=code_version(),
        starts=(started(names, request.revised),),
    )


async def _revise(
    request: EvalRequest, tasks: Sequence[Task], cards: Cards, grader: Grader, console: Console
) -> None:
    """Do anew what the request asks for in the rows and the book that there are."""
    path = request.book or request.out / BOOK
    has_rows, has_book = (request.out / ROWS).exists(), path.exists() and path.stat().st_size > 0
    if "prices" in request.revised:
        num_rows = reprice_rows(request.out, cards) if has_rows else 0
        if has_book:
            reprice_book(path, cards)
        _say(console, f"{counted(num_rows, 'row')} priced anew")
    if "grades" in request.revised:
        num_changed = await regrade_rows(request.out, tasks, grader) if has_rows else 0
        if has_book:
            await grade_book(path, tasks, grader, is_all=True)
        _say(console, f"rows graded anew: {counted(num_changed, 'verdict')} changed")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def select_tasks(
    benchmark: str, data: str, asked: Split | None, limit: int | None, grader: str | None = None
) -> tuple[tuple[Task, ...], Split]:
    """The tasks that a run of these options is over. Raises: BenchmarkError; ConfigError if none is left."""
    tasks = load_tasks(benchmark, data, grader)
    split: Split = asked or ("all" if is_generated(benchmark, data) else "test")
    development, test = split_tasks(tasks)
    tasks = {"all": tasks, "development": development, "test": test}[split]
    if not tasks:
        raise ConfigError(f"{data}: no task falls on the {split} side; choose --split all")
    return (tasks if limit is None else sample_tasks(tasks, limit)), split


def policy_names(given: Sequence[str], setting: Setting, config: PolicyConfig) -> tuple[str, ...]:
    """Each policy once, `all` spelt out. Raises: ConfigError for a name that is not a policy."""
    spelt_out = (all_policies(setting) if policy == ALL else (policy,) for policy in given)
    names = tuple(dict.fromkeys(name for some in spelt_out for name in some))
    for name in set(names) - set(tuned_names(names)):
        parse_policy(name, setting, config)
    for name in tuned_names(names):
        if name.partition(":")[0] in without_confidence(setting):
            raise ConfigError(f"{name} reads log-probabilities, which no model before the last reports")
    return names


async def _tuned(
    request: EvalRequest,
    config: ServeConfig,
    setting: Setting,
    names: tuple[str, ...],
    split: Split,
    console: Console,
) -> tuple[tuple[str, ...], Tuning | None]:
    """The names with a policy for each that is to be tuned, and how they were chosen.

    A choice that was made for the same tasks, config, prices and code is read again from the run. Raises:
    ConfigError if the development tasks would be reported; RunError if tuning passes the cost limit.
    """
    wanted = tuned_names(names)
    if not wanted:
        return names, None
    if split != "test":
        raise ConfigError(f"{', '.join(wanted)}: tuned on development tasks, so --split has to be test")
    try:
        tasks, _ = select_tasks(
            request.benchmark, request.data, "development", request.num_tuning_tasks, request.grader
        )
    except ConfigError:
        tasks = ()
    if len(tasks) < FEWEST_TASKS:
        note = f"too few development tasks ({len(tasks)}) to tune {', '.join(wanted)}: they stay fixed"
        _say(console, note)
        return tuple(fixed(name, setting) if name in wanted else name for name in names), None
    parts = (
        *(data_sha256(tasks), config_sha256(config.router, config.routing, config.model_apps)),
        *(code_version(), request.url, request.seed, setting.virtual_model, R2 in names, wanted),
    )
    made_for = hashlib.sha256(repr(parts).encode()).hexdigest()
    known = read_tuning(request.out)
    if known is not None and (request.revised or known.made_for == made_for):
        return spelt_out(names, known), known
    pool = tuple(f"single:{model}" for model in setting.pool)
    with counting("tuning", console) as on_row:
        async with Grader() as grader, _asker(request, config, setting.virtual_model, (R2, *pool)) as asker:
            tuning = await tune(
                wanted,
                tasks,
                asker,
                grader,
                setting,
                request.policy_config,
                made_for=made_for,
                has_r2=R2 in names,
                num_at_once=request.options.num_at_once,
                on_row=on_row,
            )
    return spelt_out(names, tuning), tuning


def _source(request: EvalRequest, setting: Setting) -> RowSource | None:
    if request.engine == "asyncio":
        return None
    from r2_serve.lab.evaluation.ray_data import RayDataRows

    if request.url is None:
        raise ConfigError("--engine ray-data asks a running endpoint: give its --url")
    return RayDataRows(request.url, request.api_key, setting, request.options.num_at_once)


@contextlib.asynccontextmanager
async def _asker(
    request: EvalRequest,
    config: ServeConfig,
    virtual_model: str,
    policies: Sequence[str],
    keeper: Keeper | None = None,
) -> AsyncIterator[Asker]:
    """What answers the queries of a run; without `keeper`, no reply comes from a book or goes into one."""
    if request.url is None:
        models = models_of(policies, config.routing.virtual_models[virtual_model])
        engine_for = _made_engines(config, models)
        if keeper is not None:
            engine_for = booked_engines(engine_for, config.model_apps, keeper)
        yield InProcessAsker(config.router, config.routing, engine_for)
        return
    async with new_client(request.url, api_key=request.api_key) as client:
        cards = {model.name: model for model in config.router.models}
        asker = HttpAsker(client)
        yield asker if keeper is None else BookedAsker(asker, cards, request.url, keeper)


def _made_engines(config: ServeConfig, names: Collection[str]) -> EngineFor:
    """Engines whose local models are loaded now, so that loading is no task's latency.

    Raises: ConfigError if a model cannot be loaded, before the run begins.
    """
    engine_for = in_process_engines(config.model_apps)
    made = {
        model.name: engine_for(model)
        for model in config.router.models
        if model.name in names and model.engine.kind not in HOSTED_KINDS
    }
    return lambda model: made.get(model.name) or engine_for(model)


def models_of(policies: Sequence[str], virtual: VirtualModelConfig) -> frozenset[str]:
    """Models that the policies may ask: those they name, and the virtual model's if any policy asks that."""
    named = {model for policy in policies for model in named_models(policy)}
    if all(policy.partition(":")[0] in ("single", "cascade", "datashunt") for policy in policies):
        return frozenset(named)
    own = (virtual.fallback_model, virtual.decomposer.model, virtual.allocator.model)
    return frozenset({*named, *virtual.pool, *own})


async def rows_of(
    policy: EvalPolicy, tasks: Sequence[Task], examiner: Examiner, console: Console, *, num_at_once: int
) -> list[EvalRow]:
    """The rows of one policy, kept in memory: a run without a directory."""
    rows: list[EvalRow] = []
    standing = Standing(len(tasks))
    with progress_of(policy.name, console, is_transient=True) as on_row:

        def keep(row: EvalRow) -> None:
            rows.append(row)
            standing.count(row)
            on_row(standing)

        await examiner.work_off((Work(policy, task) for task in tasks), keep, num_at_once=num_at_once)
    return rows


class ReportFiles(Config):
    """The files of a report; None leaves a file out, but for the page and the figures as JSON."""

    html: Path | None = None
    json_out: Path | None = None
    csv: Path | None = None
    latex: Path | None = None
    figures: Path | None = None
    """The directory of vector figures."""


def write_reports(
    directories: Sequence[Path],
    files: ReportFiles,
    console: Console,
    *,
    reference: str | None,
    margin: float,
    is_brief: bool,
) -> list[Path]:
    """Print the tables of every run, and write all runs into one file of each kind. Raises: RunError."""
    from r2_serve.lab.evaluation.report import export
    from r2_serve.lab.evaluation.report.figures import report_of
    from r2_serve.lab.evaluation.report.page import page
    from r2_serve.lab.evaluation.report.table import print_overview, print_report

    reports = [report_of(directory, reference, margin) for directory in directories]
    for report in reports:
        print_report(report, console, is_brief=is_brief)
    if len(reports) > 1:
        print_overview(reports, console)
    paths = [files.json_out or directories[0] / "report.json", files.html or directories[0] / "report.html"]
    write_whole(paths[0], "[" + ",\n".join(report.model_dump_json(indent=2) for report in reports) + "]")
    write_whole(paths[1], page(reports))
    if files.csv is not None:
        export.write_csv(files.csv, reports)
        paths.append(files.csv)
    if files.latex is not None:
        export.write_latex(files.latex, reports)
        paths.append(files.latex)
    return paths + (export.write_figures(files.figures, reports) if files.figures is not None else [])
