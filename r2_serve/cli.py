"""`r2-serve`: start the router, ask it, check a config, run the demo.

Each command imports its heavy libraries itself. Every console has markup off, so that text of users and
models is printed unchanged: Rich's markup would drop `list[int]` and fail on `[/a-z]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve import EMBEDDED_CONFIG
from r2_serve.lab.evaluation.cli import eval_app, sandbox_app
from r2_serve.lab.experiment.cli import experiment
from r2_serve.lab.ladder.cli import ladder
from r2_serve.lab.load.cli import load
from r2_serve.lab.outcomes.cli import outcomes_app, replay
from r2_serve.lab.results.cli import runs_app
from r2_serve.lab.simulate.cli import simulate
from r2_serve.ops.command_line import (
    DEFAULT_URL,
    ConfigOption,
    KeyOption,
    StartTimeoutOption,
    UrlOption,
    fail,
    plain_errors,
    replace_unprintable_characters,
)
from r2_serve.ops.deploy_files.cli import kuberay, monitoring
from r2_serve.ops.keys import keys_app
from r2_serve.ops.prefetch import prefetch
from r2_serve.ops.prices import prices
from r2_serve.ops.publishing.cli import publish, rollback
from r2_serve.ops.publishing.compare_cli import compare
from r2_serve.ops.setup.doctor import doctor
from r2_serve.ops.setup.environment import warn_of_unset_keys
from r2_serve.ops.setup.init import init
from r2_serve.ops.setup.show import config_app

if TYPE_CHECKING:
    from r2_serve.serve_config import ServeConfig

QUESTION = "Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?"
app = typer.Typer(
    help="R2: breaks a query into subtasks and gives each to the cheapest model able to solve it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=f"Example: r2-serve up, then in another shell: r2-serve ask '{QUESTION}'",
)

app.add_typer(config_app, name="config")
app.add_typer(eval_app, name="eval")
app.add_typer(sandbox_app, name="sandbox")
app.add_typer(outcomes_app, name="outcomes")
app.add_typer(runs_app, name="runs")
app.add_typer(keys_app, name="keys")
app.command()(init)
app.command()(doctor)
app.command()(load)
app.command()(replay)
app.command()(experiment)
app.command()(ladder)
app.command()(simulate)
app.command()(publish)
app.command()(rollback)
app.command()(compare)
app.command()(kuberay)
app.command()(monitoring)
app.command()(prefetch)
app.command()(prices)

PortOption = Annotated[
    int | None,
    typer.Option(
        "--port", "-p", min=0, max=65535, help="Port; 0 takes a free one. Default: `http_options.port`."
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(help="Address to listen at. Default: `http_options.host`, or loopback if there is none."),
]


@app.callback()
def _at_start() -> None:
    """Makes output fit any terminal, and keeps secrets of the environment out of logs, before any command."""
    from r2_serve.http.redaction import Redactor, redact_logs

    replace_unprintable_characters()
    redact_logs(Redactor.of())


@app.command()
def up(
    config: ConfigOption = EMBEDDED_CONFIG,
    port: PortOption = None,
    host: HostOption = None,
    start_timeout: StartTimeoutOption = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0, help="GPUs that replicas may take. Default: those that Ray finds on this machine."
        ),
    ] = None,
    dashboard: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="Run Ray's dashboard at this port of loopback, such as 8265: `publish` needs it. The start "
            "then takes some seconds more per application.",
        ),
    ] = None,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process", help="Serve hosted and numpy models in this process, without Ray and replicas."
        ),
    ] = False,
) -> None:
    """Start a local Ray cluster with the router on it, until ctrl-C.

    \b
    Example:  r2-serve up
              curl http://127.0.0.1:8000/v1/models
              r2-serve up --config serve_config.yaml --gpus 2
              r2-serve up --config serve_config.yaml --dashboard 8265
              r2-serve up --in-process --config serve_config.yaml
    """
    if in_process:
        _up_in_process(config, host, port)
        return
    from r2_serve.ops.local.cluster import finish_requests, prepare_environment, wait_for_interrupt

    prepare_environment(shares_token=dashboard is not None)
    loaded = _load(config)
    at = _address(loaded, host, port)
    with _cluster(loaded, *at, start_timeout, gpus, dashboard) as url:
        if dashboard is not None:
            at_dashboard = f"--dashboard http://127.0.0.1:{dashboard}"
            typer.echo(f"change: r2-serve publish DIRECTORY --config {config} {at_dashboard}")
        _say_how_to_use(loaded, url)
        wait_for_interrupt()
        typer.echo("stopping: waiting for the requests at work; once more to cut them off")
        with contextlib.suppress(KeyboardInterrupt):
            finish_requests(loaded)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A virtual model (routed) or a pool model (plain).")
    ] = "r2",
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="learned, cheapest, random, all:MODEL, final-only:SMALL,LARGE, one:MODEL or one:auto."
        ),
    ] = None,
    max_cost_usd: Annotated[
        float | None, typer.Option(min=1e-6, help="The most this question may cost, in USD.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw the plan and the state of each step as they come.")
    ] = False,
) -> None:
    """Ask a running endpoint; prints the answer and the DAG behind it.

    \b
    Example:  r2-serve ask 'Ann has 3 bags of 9 coins. Bob has 12 coins. How many coins do they have in all?'
              r2-serve ask -m r2-scan 'jump around left twice after walk'
              r2-serve ask --watch --policy learned 'How many days are there in three leap years?'
    """
    from rich.console import Console

    from r2_serve import client
    from r2_serve.lab.reports.terminal import dag_view, trace_view
    from r2_serve.lab.reports.watching import watched

    if not question.strip():
        fail("the question is empty; ask one, such as: r2-serve ask 'What is 17 + 25?'", status=2)
    limit = None if max_cost_usd is None else Decimal(str(max_cost_usd))

    async def once() -> client.ChatReply:
        query = client.question(model, question, policy=policy, max_cost_usd=limit)
        async with client.new_client(url, api_key=api_key) as http:
            if watch:
                return await watched(http, query)
            return await client.ask(http, client.chat_body(query))

    try:
        reply = asyncio.run(once())
    except client.RequestFailed as e:
        hint = (
            f"\nIs an endpoint running at {url}? Start one with: r2-serve up" if e.http_status is None else ""
        )
        fail(f"{e.message}{hint}")
    typer.echo(f"{reply.text}\n", color=True)  # as it came: `color` keeps escape sequences in a pipe
    console, trace = Console(markup=False), reply.r2.trace if reply.r2 else None
    if trace is not None:
        if trace.plan is not None:
            console.print(dag_view(trace.plan))
        console.print(trace_view(trace))


@app.command()
def validate(
    config: Annotated[Path, typer.Argument(help="A Serve config, such as serve_config.yaml.")],
) -> None:
    """Check a Serve config offline: keys, values, names and what must hold between them.

    Serve itself ignores keys that it does not know. Exit status: 0 without errors, 1 with errors, 2 if the
    file cannot be read.

    \b
    Example:  r2-serve validate serve_config.yaml
    """
    from r2_serve.errors import ConfigError, counted
    from r2_serve.ops.local.room import room_at_start
    from r2_serve.serve_config import check, load

    try:
        problems = check(config)
    except ConfigError as e:
        fail(e.message, status=2)
    for problem in problems:
        typer.secho(str(problem), fg="red" if problem.severity == "error" else "yellow")
    num_errors = sum(problem.severity == "error" for problem in problems)
    num_warnings = len(problems) - num_errors
    result = f"{config}: {counted(num_errors, 'error')}, {counted(num_warnings, 'warning')}"
    if num_errors:
        typer.echo(result)
        raise typer.Exit(1)
    with plain_errors():
        typer.echo(f"{config}: {room_at_start(load(config))}")
    typer.echo(f"{result} - valid")


@app.command()
def models(config: ConfigOption = EMBEDDED_CONFIG) -> None:
    """The models of a config: what may be asked for, prices, and how each is reached.

    \b
    Example:  r2-serve models --config serve_config.yaml
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    loaded = _load(config)
    date = loaded.router.prices_as_of or "an unstated date"
    table = Table(title=Text(f"{config.name}, prices as of {date}"))
    for column in ("model", "group", "USD per 1M tokens in", "out", "engine"):
        table.add_column(column)
    for name, virtual in loaded.routing.virtual_models.items():
        table.add_row(
            Text(name, style="bold"), "virtual", "", "", Text(f"routes to {', '.join(virtual.pool)}")
        )
    for card in loaded.router.models:
        prices = f"{card.usd_per_mtok_in:f}", f"{card.usd_per_mtok_out:f}"
        table.add_row(Text(card.name), card.group, *prices, card.engine.kind)
    Console(markup=False).print(table)


@app.command()
def demo(
    domain: Annotated[str, typer.Option(envvar="DOMAIN", help="everyday, words, scan or all.")] = "all",
    queries: Annotated[int, typer.Option(min=1, help="Held-out tasks per domain.")] = 200,
    out: Annotated[Path, typer.Option(help="Where summary.json goes.")] = Path("runs/demo"),
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Loopback port; 0: any.")] = 0,
    start_timeout: StartTimeoutOption = None,
    stay: Annotated[
        bool | None,
        typer.Option("--stay/--no-stay", help="Keep the page open until ctrl-C. Default: in a terminal."),
    ] = None,
) -> None:
    """Route held-out tasks through a local cluster over HTTP, and show what routing buys.

    \b
    Example:  r2-serve demo --domain scan --queries 100
    """
    from rich.console import Console

    from r2_serve.lab.demo import DOMAINS, run_demo, write_summary
    from r2_serve.ops.local.cluster import LOOPBACK, only, prepare_environment, wait_for_interrupt

    prepare_environment()
    names = list(DOMAINS) if domain in ("all", "") else [domain]
    if unknown := [name for name in names if name not in DOMAINS]:
        fail(f"unknown domain {unknown[0]!r}; choose {', '.join(DOMAINS)} or all")
    console = Console(markup=False)
    loaded = only(_load(EMBEDDED_CONFIG), [DOMAINS[name].virtual_model for name in names])
    with _cluster(loaded, LOOPBACK, port, start_timeout) as url:
        summary = asyncio.run(run_demo(url, loaded, names, queries, console))
        typer.echo(f"written: {write_summary(summary, out)}")
        if sys.stdout.isatty() if stay is None else stay:
            typer.echo(f"page:    {_page(url)}  (ctrl-C ends the demo)")
            wait_for_interrupt()


def _load(path: Path) -> ServeConfig:
    from r2_serve.serve_config import load

    with plain_errors():
        return load(path, with_imports=True)


def _up_in_process(path: Path, host: str | None, port: int | None) -> None:
    """`up` without Ray: the same router under uvicorn."""
    from r2_serve.ops.local.cluster import check_port_is_free, free_port, reachable
    from r2_serve.ops.local.in_process import LACKS, serve
    from r2_serve.serve_config import load_without_ray

    with plain_errors():
        config = load_without_ray(path)
        at, port = _address(config, host, port)
        port = port or free_port()
        check_port_is_free(at, port)
        url = f"http://{reachable(at)}:{port}/v1"

        def say() -> None:
            _say_ready(url)
            typer.echo(f"lacks:  {LACKS}")
            _say_how_to_use(config, url)

        asyncio.run(serve(config, at, port, say))


def _say_ready(url: str) -> None:
    typer.echo(f"{typer.style('ready', fg='green', bold=True)}  {url}")


def _say_how_to_use(config: ServeConfig, url: str) -> None:
    models = ", ".join(model.name for model in config.router.models)
    typer.echo(f"models: {', '.join(config.routing.virtual_models)} (routed), {models}")
    warn_of_unset_keys(config.router.models)
    typer.echo(f"page:   {_page(url)}")
    server = config.router.server
    key = "--api-key KEY " if server.keys_file or server.api_keys_env else ""
    typer.echo(f"try:    r2-serve ask --url {url} {key}'{QUESTION}'\nstop:   ctrl-C")


def _page(url: str) -> str:
    """The address of the page of the endpoint at `url`, which ends with /v1."""
    return f"{url.removesuffix('/v1')}/ui"


def _address(config: ServeConfig, host: str | None, port: int | None) -> tuple[str, int]:
    """Host and port: those of the options, else those of the file. A file without a host means loopback."""
    from r2_serve.http.keys import require_keys
    from r2_serve.ops.local.cluster import LOOPBACK

    found = host or str((config.raw.get("http_options") or {}).get("host", LOOPBACK))
    with plain_errors():
        require_keys(found, config.router.server)
    return found, config.http_port if port is None else port


@contextlib.contextmanager
def _cluster(
    config: ServeConfig,
    host: str,
    port: int,
    start_timeout_s: float | None,
    num_gpus: int | None = None,
    dashboard_port: int | None = None,
) -> Iterator[str]:
    """A local cluster running `config`; its base URL. Our own errors end the command without a traceback."""
    from r2_serve.ops.local.cluster import free_port, local_cluster

    with (
        plain_errors(),
        local_cluster(
            config,
            host=host,
            port=port or free_port(),
            num_gpus=num_gpus,
            dashboard_port=dashboard_port,
            start_timeout_s=start_timeout_s,
            say=typer.echo,
        ) as url,
    ):
        _say_ready(url)
        yield url


if __name__ == "__main__":
    app()
