"""`r2-serve eval` and `r2-serve sandbox`. Heavy imports wait for the command that needs them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from r2_serve import EMBEDDED_CONFIG
from r2_serve.errors import counted
from r2_serve.grading.named import GRADER_NAMES
from r2_serve.grading.rows import BENCHMARKS, known_benchmark
from r2_serve.lab.evaluation.benchmarks import Split
from r2_serve.ops.command_line import RESUMES, ConfigOption, KeyOption, SetAsideOption, fail, plain_errors

if TYPE_CHECKING:
    from r2_serve.lab.evaluation.session import EvalRequest

eval_app = typer.Typer(
    help="Run benchmarks against the router and its baselines, grade, report.", no_args_is_help=True
)
sandbox_app = typer.Typer(help="Run Python that a model wrote.", no_args_is_help=True)


def _usd(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as e:
        raise typer.BadParameter(f"{text!r} is not an amount") from e


def _benchmark(text: str) -> str:
    try:
        return known_benchmark(text)
    except ValueError as e:
        raise typer.BadParameter(str(e)) from e


BENCHMARK_HELP = f"One of {', '.join(BENCHMARKS)} (qa: JSONL of your own), or MODULE:NAME."
BenchmarkOption = Annotated[
    str, typer.Option("--benchmark", "-b", parser=_benchmark, metavar="BENCHMARK", help=BENCHMARK_HELP)
]
GraderOption = Annotated[
    str | None,
    typer.Option(
        "--grader",
        "-g",
        help=f"{', '.join(GRADER_NAMES)} or MODULE:NAME; default: the benchmark's or row's own.",
    ),
]
PolicyOption = Annotated[
    list[str], typer.Option("--policy", "-p", help="Repeatable; r2, single:MODEL, cot:MODEL, ..., or all.")
]
DataOption = Annotated[
    str, typer.Option("--data", "-d", help="Official file or directory, hf:NAME, or a generated split.")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Number of tasks, drawn by id; default: all of the split.")
]
SplitOption = Annotated[
    Split | None, typer.Option(help="A side by task id; default: test, but all of a generated split.")
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Run directory; an unfinished run in it goes on.")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="R2_EVAL_URL", help="Endpoint, with its /v1; default: in this process."),
]


@eval_app.command()
def run(
    benchmark: BenchmarkOption,
    policy: PolicyOption,
    data: DataOption,
    out: OutOption,
    limit: LimitOption = None,
    split: SplitOption = None,
    grader: GraderOption = None,
    config: ConfigOption = EMBEDDED_CONFIG,
    url: UrlOption = None,
    api_key: KeyOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Virtual model; default: r2-BENCHMARK, else the first."),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="(policy, task) pairs under way.")] = 32,
    max_cost_usd: Annotated[
        Decimal | None,
        typer.Option(
            parser=_usd, metavar="USD", help="Stop at this cost, earlier runs of DIR included; for each seed."
        ),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again the tasks that got no answer.")
    ] = False,
    tau: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence below which dot, datashunt, cascade escalate.")
    ] = 0.9,
    tuning_tasks: Annotated[
        int, typer.Option(min=1, help="Development tasks on which dot:tuned and its like are chosen.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of every draw that a policy makes.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of runs, one for each seed from --seed on, in DIR/seed-0 and so on."
        ),
    ] = 1,
    book: Annotated[
        Path | None,
        typer.Option("--book", help="Book of replies to read and add to; default: book.jsonl in DIR."),
    ] = None,
    reprice: Annotated[
        bool, typer.Option("--reprice", help="Price the rows of DIR at the config's prices, without a call.")
    ] = False,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the rows of DIR again, without a call.")
    ] = False,
    set_aside: SetAsideOption = False,
    engine: Annotated[
        Literal["asyncio", "ray-data"], typer.Option(help="ray-data: Ray Data on the cluster; needs --url.")
    ] = "asyncio",
) -> None:
    """Answer and grade tasks under one or more policies; killed at any time, the same command goes on.

    Replies are kept in a book, so that a further policy, a larger --limit, another price or a mended
    grader asks only what is missing. No policy shows few-shot examples, so none can come from the evaluated
    rows.

    \b
    Example:  r2-serve eval run -b scan -d length -p r2 -p single:scan-168k --limit 200 --out runs/scan
              r2-serve eval run -b math -d MATH/test -p all -c serve_config.yaml --out runs/math
              r2-serve eval run -b qa -d mine.jsonl --grader number -p r2 -c serve_config.yaml --out runs/mine
              r2-serve eval run -b scan -d length -p single:scan-22k --limit 400 --out runs/scan
              r2-serve eval run -b scan -d length -p r2 -p random --limit 200 --seeds 5 --out runs/seeds
              r2-serve eval report runs/scan
    """
    from r2_serve.lab.evaluation.manifest import BOOK, Revision
    from r2_serve.lab.evaluation.policies import PolicyConfig
    from r2_serve.lab.evaluation.runner import RunOptions
    from r2_serve.lab.evaluation.session import EvalRequest

    wanted: dict[Revision, bool] = {"prices": reprice, "grades": regrade}
    revised = tuple(name for name, is_wanted in wanted.items() if is_wanted)
    request = EvalRequest(
        benchmark=benchmark,
        policies=tuple(policy),
        data=data,
        out=out,
        limit=limit,
        split=split,
        grader=grader,
        config=config,
        url=url,
        api_key=api_key,
        virtual_model=model,
        seed=seed,
        num_tuning_tasks=tuning_tasks,
        engine=engine,
        policy_config=PolicyConfig(tau=tau),
        options=RunOptions(num_at_once=at_once, max_cost_usd=max_cost_usd, retry_errors=retry_errors),
        book=book,
        revised=revised,
        set_aside_other_run=set_aside,
    )
    requests = [request]
    if seeds > 1:
        numbers = range(seed, seed + seeds)
        requests = [
            request.model_copy(
                update={"seed": number, "out": out / f"seed-{number}", "book": book or out / BOOK}
            )
            for number in numbers
        ]
    for one in requests:
        _run(one)
    typer.echo(f"Now: r2-serve eval report {out}")


def _run(request: EvalRequest) -> None:
    """Carry out one run, and say how it ended."""
    from rich.console import Console

    from r2_serve.lab.evaluation.session import run_session

    with plain_errors(interrupted=RESUMES):
        standing = asyncio.run(run_session(request, Console(markup=False)))
    if standing.stopped_because is not None:
        fail(f"stopped after {standing.num_done} of {standing.num_total}: {standing.stopped_because}")
    if standing.num_failed:
        typer.echo(f"the last failure: {standing.last_failure}")
    typer.echo(f"done: {counted(standing.num_done, 'row')}, {standing.num_failed} failed.")


@eval_app.command()
def grade(
    benchmark: Annotated[str, typer.Argument(parser=_benchmark, metavar="BENCHMARK", help=BENCHMARK_HELP)],
    grader: GraderOption = None,
) -> None:
    """Grade JSONL rows from standard input to JSONL verdicts on standard output, without any model.

    \b
    Rows:     {"id": ..., "answer": ..., "gold": ...}, or the official row as "row" in place of "gold"
    Verdicts: {"id": ..., "correct": true, false or null, "status": ..., "detail": ..., "scores": {...}}
    Example:  r2-serve eval grade csqa < rows.jsonl > verdicts.jsonl
              r2-serve eval grade qa --grader number < rows.jsonl > verdicts.jsonl
    """
    from r2_serve.grading.lines import grade_lines
    from r2_serve.lab.evaluation.benchmarks import kind_of

    with plain_errors():
        counts = grade_lines(kind_of(benchmark), sys.stdin, sys.stdout, grader=grader)
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    typer.echo(summary or "no rows", err=True)


@eval_app.command()
def export(
    benchmark: BenchmarkOption,
    data: DataOption,
    file_format: Annotated[
        Literal["lm-eval", "inspect"], typer.Option("--format", "-f", help="The tool that will read them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the files.")],
    limit: LimitOption = None,
    split: SplitOption = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model named in the command that is printed.")
    ] = "r2",
) -> None:
    """Write tasks for lm-evaluation-harness or inspect-ai: the rows of `eval run`, scored by the same rules.

    \b
    Example:  r2-serve eval export -b scan -d length --limit 200 --format lm-eval --out export -m r2-scan
    """
    from r2_serve.lab.evaluation import export as exporting
    from r2_serve.lab.evaluation.session import select_tasks

    with plain_errors():
        tasks, _ = select_tasks(benchmark, data, split, limit)
        paths = exporting.export(tasks, file_format, out)
    typer.echo(f"{counted(len(tasks), 'task')} written: {', '.join(map(str, paths))}")
    typer.echo("now, with an endpoint on port 8000:\n")
    typer.echo(exporting.command(file_format, benchmark, out, model))


MarginOption = Annotated[
    float,
    typer.Option(
        "--margin", min=0.01, max=100, help="Points of accuracy that may be lost and still be 'not worse'."
    ),
]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="Write all numbers, a line for each policy.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")]
OursOption = Annotated[
    list[str] | None, typer.Option("--policy", "-p", help="Policies of A; default: all that B has too.")
]
TheirsOption = Annotated[list[str] | None, typer.Option("--with", help="Policies of B; default: those of A.")]
LatexOption = Annotated[Path | None, typer.Option("--latex", help="Write the tables for booktabs.")]


@eval_app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Run directories, or directories with the runs of several seeds.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the first directory.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="The figures; default: report.json in the first directory.")
    ] = None,
    csv: CsvOption = None,
    latex: LatexOption = None,
    figures: Annotated[
        Path | None, typer.Option(help="Directory for vector figures, as SVG and PDF.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Policy whose cost is 100 %; default: the largest model alone.")
    ] = None,
    margin: MarginOption = 1.0,
    brief: Annotated[
        bool, typer.Option("--brief", help="Print one table for each run; the files hold everything.")
    ] = False,
) -> None:
    """Accuracy, costs and how they compare: as tables here, as JSON, and as one self-contained HTML page.

    \b
    Example:  r2-serve eval report runs/eval/*
              r2-serve eval report runs/scan --csv scan.csv --latex scan.tex --figures figures
    """
    from rich.console import Console

    from r2_serve.lab.evaluation.session import ReportFiles, write_reports

    files = ReportFiles(html=html, json_out=json_out, csv=csv, latex=latex, figures=figures)
    with report_packages():
        written = write_reports(
            directories,
            files,
            Console(markup=False),
            reference=reference,
            margin=margin / 100,
            is_brief=brief,
        )
    typer.echo(f"written: {', '.join(map(str, written))}")


@eval_app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="A run directory, or a directory with the runs of several seeds.")
    ],
    b: Annotated[Path, typer.Argument(help="Another one; or the same, to compare two of its policies.")],
    policy: OursOption = None,
    other: TheirsOption = None,
    margin: MarginOption = 1.0,
    json_out: JsonOption = None,
    csv: CsvOption = None,
    latex: LatexOption = None,
) -> None:
    """Compare two runs task by task: accuracy and cost with paired intervals, tests, and 'not worse'.

    Only the tasks that both runs have are compared.

    \b
    Example:  r2-serve eval compare runs/new runs/old
              r2-serve eval compare runs/scan runs/scan -p r2 --with all:scan-3k --with single:scan-168k
    """
    from r2_serve.lab.evaluation.report.compare import compare_runs
    from r2_serve.lab.evaluation.report.export import show_comparison

    with report_packages():
        found = compare_runs(a, b, policy or (), other or (), margin / 100)
        show_comparison(found, json_out, csv, latex)


@contextmanager
def report_packages() -> Iterator[None]:
    """Say what to install if a package of the extra `eval` is missing."""
    try:
        with plain_errors():
            yield
    except ImportError as e:
        fail(f"reports need more packages: pip install 'route-and-reason[eval]' ({e})")


@sandbox_app.command("run")
def sandbox_run(
    file: Annotated[Path, typer.Argument(help="A Python program; - reads standard input.", exists=False)],
    timeout: Annotated[float, typer.Option(min=0.1, help="Wall-clock seconds.")] = 10.0,
    allow_unsandboxed: Annotated[
        bool,
        typer.Option("--allow-unsandboxed", help="Run without bubblewrap: the program can do what you can."),
    ] = False,
) -> None:
    """Run a program in the sandbox that grades model-written code.

    The exit status is the program's own, 124 at the timeout, and 125 if it ended in another way.

    \b
    Example:  echo 'print(6 * 7)' | r2-serve sandbox run -
    """
    from r2_serve.grading.sandbox import run_python

    try:
        code = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{file} cannot be read: {e}")
    with plain_errors():
        result = asyncio.run(run_python(code, timeout_s=timeout, allow_unsandboxed=allow_unsandboxed))
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    if result.status != "ok":
        ended = f"the program ended as {result.status} after {result.duration_s:.1f} s"
        typer.echo(f"r2-serve: {ended}", err=True)
    codes = {"ok": 0, "timeout": 124, "failed": result.exit_code}
    exit_code = codes.get(result.status, 125)
    raise typer.Exit(125 if exit_code is None or not 0 <= exit_code < 256 else exit_code)
