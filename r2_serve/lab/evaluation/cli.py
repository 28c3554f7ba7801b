"""`r2-serve eval` and `r2-serve sandbox`: typer sub-apps. Heavy imports wait for the command that needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from r2_serve import EMBEDDED_CONFIG
from r2_serve.ops.command_line import ConfigOption, KeyOption, SetAsideOption, fail, plain_errors
from r2_serve.ops.command_line import run as finish

if TYPE_CHECKING:
    from r2_serve.grading.rows import Benchmark
    from r2_serve.lab.evaluation.manifest import Split
    from r2_serve.lab.evaluation.session import EvalRequest

Name = TypeVar("Name", bound=str)
eval_app = typer.Typer(
    help="Run benchmarks against the router and its baselines, grade, report.", no_args_is_help=True
)
sandbox_app = typer.Typer(help="Run Python that nobody has read.", no_args_is_help=True)

SPLITS: tuple[Split, ...] = ("all", "development", "test")
BENCHMARKS = "math, csqa, p3, scan, champ, musique or words"


def _usd(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as e:
        raise typer.BadParameter(f"{text!r} is not an amount") from e


BenchmarkOption = Annotated[str, typer.Option("--benchmark", "-b", help=f"{BENCHMARKS}.")]
PolicyOption = Annotated[
    list[str], typer.Option("--policy", "-p", help="Repeatable; r2, single:MODEL, cot:MODEL, ..., or all.")
]
DataOption = Annotated[
    str, typer.Option("--data", "-d", help="Official file or directory, hf:NAME, or a generated split.")
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Tasks, drawn by id; default: all of the split.")
]
SplitOption = Annotated[
    str | None,
    typer.Option(help="By task id: all, development, test. Default: test; all of a generated split."),
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
        typer.Option(parser=_usd, metavar="USD", help="Stop there; earlier runs of DIR count."),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again where there was no answer.")
    ] = False,
    tau: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence below which dot, datashunt, cascade escalate.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Of every draw that a policy makes.")] = 0,
    set_aside: SetAsideOption = False,
    engine: Annotated[
        str, typer.Option(help="asyncio, or ray-data (Ray Data on the cluster; needs --url).")
    ] = "asyncio",
) -> None:
    """Answer and grade tasks under one or more policies; killed at any time, the same command goes on.

    No policy shows few-shot examples, so none can come from the evaluated rows.

    \b
    Example:  r2-serve eval run -b scan -d length -p r2 -p single:scan-168k --limit 200 --out runs/scan
              r2-serve eval run -b math -d MATH/test -p all --url http://127.0.0.1:8000/v1 -c serve_config.yaml --out runs/math
              r2-serve eval report runs/scan
    """
    from r2_serve.lab.evaluation.policies import PolicyConfig
    from r2_serve.lab.evaluation.runner import RunOptions
    from r2_serve.lab.evaluation.session import EvalRequest

    request = EvalRequest.model_validate(
        {
            "benchmark": _chosen(benchmark, "benchmark", _benchmarks()),
            "policies": tuple(policy),
            "data": data,
            "out": out,
            "limit": limit,
            "split": None if split is None else _chosen(split, "split", SPLITS),
            "config": config,
            "url": url,
            "api_key": api_key,
            "virtual_model": model,
            "seed": seed,
            "engine": _chosen(engine, "engine", ("asyncio", "ray-data")),
            "policy_config": PolicyConfig(tau=tau),
            "options": RunOptions(num_at_once=at_once, max_cost_usd=max_cost_usd, retry_errors=retry_errors),
            "set_aside_other_run": set_aside,
        }
    )
    _run(request)


@eval_app.command()
def grade(benchmark: Annotated[str, typer.Argument(help=f"{BENCHMARKS}.")]) -> None:
    """Grade JSONL rows from standard input to JSONL verdicts on standard output, without any model.

    \b
    Rows:     {"id": ..., "answer": ..., "gold": ...}, or the official row as "row" in place of "gold"
    Verdicts: {"id": ..., "correct": true, false or null, "status": ..., "detail": ..., "scores": {...}}
    Example:  r2-serve eval grade csqa < rows.jsonl > verdicts.jsonl
    """
    from r2_serve.grading.graders import grade_lines

    with plain_errors():
        counts = grade_lines(_chosen(benchmark, "benchmark", _benchmarks()), sys.stdin, sys.stdout)
    typer.echo(
        ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "no rows", err=True
    )


@eval_app.command()
def export(
    benchmark: BenchmarkOption,
    data: DataOption,
    file_format: Annotated[str, typer.Option("--format", "-f", help="lm-eval or inspect.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the files.")],
    limit: LimitOption = None,
    split: SplitOption = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model named in the command that is printed.")
    ] = "r2",
) -> None:
    """Write tasks for lm-evaluation-harness or inspect-ai: the rows that `eval run` takes, scored by the same rules.

    \b
    Example:  r2-serve eval export -b scan -d length --limit 200 --format lm-eval --out export/lm-eval -m r2-scan
    """
    from r2_serve.lab.evaluation.export import FORMATS, command
    from r2_serve.lab.evaluation.export import export as write
    from r2_serve.lab.evaluation.session import select_tasks

    name = _chosen(benchmark, "benchmark", _benchmarks())
    form = _chosen(file_format, "format", FORMATS)
    with plain_errors():
        tasks, _ = select_tasks(name, data, None if split is None else _chosen(split, "split", SPLITS), limit)
        paths = write(tasks, form, out)
    typer.echo(
        f"{len(tasks)} tasks written: {', '.join(map(str, paths))}\nnow, with an endpoint on port 8000:\n"
    )
    typer.echo(command(form, name, out, model))


@eval_app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(help="Run directories.")],
    html: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the first directory.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="The figures; default: report.json in the first directory.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Policy whose cost is 100 %; default: the largest model alone.")
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Print one table for each run; the files hold everything.")
    ] = False,
) -> None:
    """Accuracy, costs and how they compare: as tables here, as JSON, and as one self-contained HTML page.

    \b
    Example:  r2-serve eval report runs/eval/*
    """
    from rich.console import Console

    try:
        from r2_serve.lab.evaluation.session import write_reports

        with plain_errors():
            written = write_reports(
                directories, html, json_out, Console(markup=False), reference=reference, is_brief=brief
            )
    except ImportError as e:
        fail(f"reports need more packages: pip install 'route-and-reason[eval]' ({e})")
    typer.echo(f"written: {', '.join(map(str, written))}")


@sandbox_app.command("run")
def sandbox_run(
    file: Annotated[Path, typer.Argument(help="A Python program; - reads standard input.", exists=False)],
    timeout: Annotated[float, typer.Option(min=0.1, help="Wall-clock seconds.")] = 10.0,
    allow_unsandboxed: Annotated[
        bool,
        typer.Option(
            "--allow-unsandboxed", help="Run even without bubblewrap: the program can do what you can."
        ),
    ] = False,
) -> None:
    """Run a program in the sandbox that grades model-written code. Exit status: the program's; 124 at the timeout; 125 for anything else.

    \b
    Example:  echo 'print(6 * 7)' | r2-serve sandbox run -
    """
    from r2_serve.grading.sandbox import run_python

    try:
        code = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{file} cannot be read: {e}")
    result = finish(run_python(code, timeout_s=timeout, allow_unsandboxed=allow_unsandboxed))
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    if result.status != "ok":
        typer.echo(
            f"r2-serve: the program ended as {result.status} after {result.duration_s:.1f} s", err=True
        )
    codes = {"ok": 0, "timeout": 124, "failed": result.exit_code}
    exit_code = codes.get(result.status, 125)
    raise typer.Exit(125 if exit_code is None or not 0 <= exit_code < 256 else exit_code)


def _run(request: EvalRequest) -> None:
    from rich.console import Console

    from r2_serve.lab.evaluation.session import run_session

    standing = finish(run_session(request, Console(markup=False)))
    if standing.stopped_because is not None:
        fail(f"stopped after {standing.num_done} of {standing.num_total}: {standing.stopped_because}")
    typer.echo(
        f"done: {standing.num_done} rows, {standing.num_failed} failed. Now: r2-serve eval report {request.out}"
    )


def _benchmarks() -> tuple[Benchmark, ...]:
    from r2_serve.grading.rows import BENCHMARKS as names

    return names


def _chosen(value: str, what: str, known: Sequence[Name]) -> Name:
    """`value` as one of `known`, or the end of the command."""
    chosen = next((name for name in known if name == value), None)
    if chosen is None:
        fail(f"unknown {what} {value!r}; choose {', '.join(known)}")
    return chosen
