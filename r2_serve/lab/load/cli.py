"""`r2-serve load`. Heavy imports wait until it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.lab.examples import chosen_file
from r2_serve.ops.command_line import (
    DEFAULT_URL,
    INTERRUPTED,
    ExampleOption,
    KeyOption,
    SeedOption,
    SetAsideOption,
    StartTimeoutOption,
    UrlOption,
    WorkloadArgument,
    fail,
    plain_errors,
)

if TYPE_CHECKING:
    from rich.console import Console

    from r2_serve.lab.load.session import LoadOptions, Target
    from r2_serve.lab.workload import Workload
    from r2_serve.lab.workload.failures import Failure


def load(
    workload: WorkloadArgument = None,
    example: ExampleOption = None,
    url: UrlOption = DEFAULT_URL,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="Serve config of a local cluster to start instead; `scripted`: the config of the examples.",
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(min=0, help="With --config: more Ray nodes, each with its --gpus. 0: one node alone."),
    ] = 0,
    gpus: Annotated[int, typer.Option(min=0, help="With --config: GPUs that a node pretends to have.")] = 0,
    dashboard: Annotated[
        str | None,
        typer.Option(
            help="Ray dashboard of the endpoint's cluster, such as http://HEAD:8265, to count replicas."
        ),
    ] = None,
    api_key: KeyOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run directory; default: runs/load/NAME of the workload."),
    ] = None,
    seed: SeedOption = None,
    max_open: Annotated[
        int,
        typer.Option(min=1, max=50_000, help="Most connections; requests beyond it are late, and count so."),
    ] = 2000,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for a whole answer.")] = 300.0,
    no_stream: Annotated[
        bool,
        typer.Option("--no-stream", help="Whole replies: less work for both ends, no first-token times."),
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between samples of queue and replicas.")
    ] = 1.0,
    gpu_usd_per_hour: Annotated[
        float, typer.Option(min=0, help="Price of a GPU, for the cost of replicas.")
    ] = 0.0,
    node_idle_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Count a node while it is in use and so many seconds longer, as if it were then removed.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")
    ] = False,
    set_aside: SetAsideOption = False,
    start_timeout: StartTimeoutOption = None,
) -> None:
    """Send a workload at its own pace, without waiting for answers, and report what users would have seen.

    Latency counts from the time at which a request was to be sent. Ctrl-C ends a run in order: its results so
    far are written, and the status is 130.

    \b
    Example:  r2-serve load --example list
              r2-serve load --example bursts --dry-run
              r2-serve load -e on-off --config scripted --gpus 8
              r2-serve load mine.yaml --url http://127.0.0.1:8000/v1
              r2-serve load mine.yaml --dashboard http://HEAD:8265
    """
    from rich.console import Console

    from r2_serve.lab.load.session import LoadOptions
    from r2_serve.lab.workload import EXAMPLES, load_workload

    with plain_errors():
        loaded = load_workload(chosen_file(workload, example, EXAMPLES))
        if dry_run:
            _preview(loaded, seed)
            return
        options = LoadOptions(
            out=out or Path("runs/load") / loaded.name,
            api_key=api_key,
            seed=seed,
            max_open=max_open,
            timeout_s=timeout,
            is_streamed=not no_stream,
            interval_s=interval,
            gpu_usd_per_hour=gpu_usd_per_hour,
            node_idle_timeout_s=node_idle_timeout,
            set_aside=set_aside,
        )
        console = Console(markup=False)
        with _target(url, config, dashboard, nodes, gpus, start_timeout, loaded.failures) as target:
            _run(loaded, target, options, console)


def _preview(workload: Workload, seed: int | None) -> None:
    from r2_serve.lab.load.preview import preview, preview_lines
    from r2_serve.lab.load.session import nothing_sent

    totals = preview(workload, seed)
    if totals.num_requests == 0:
        fail(nothing_sent(workload))
    typer.echo("\n".join(preview_lines(workload, totals)))


def _run(workload: Workload, target: Target, options: LoadOptions, console: Console) -> None:
    from r2_serve.lab.load.progress import print_summary, progress
    from r2_serve.lab.load.run_directory import REPORT, SUMMARY
    from r2_serve.lab.load.session import run_load

    with progress(workload.name, workload.duration_s, console) as watcher:
        summary = asyncio.run(run_load(workload, target, options, watcher))
    print_summary(summary, console)
    written = [path for name in (SUMMARY, REPORT) if (path := options.out / name).exists()]
    typer.echo(f"written: {', '.join(map(str, written))}")
    if len(written) == 1:
        typer.echo("the page needs matplotlib: pip install 'route-and-reason[eval]'", err=True)
    if summary.info.is_interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.num_ok == 0:
        fail("no request was answered; the first errors are in requests.jsonl")


@contextmanager
def _target(
    url: str,
    config: Path | None,
    dashboard: str | None,
    nodes: int,
    gpus: int,
    start_timeout_s: float | None,
    failures: Sequence[Failure],
) -> Iterator[Target]:
    from r2_serve.lab.load.session import Target

    if config is None:
        from r2_serve.cluster.serve_api import Dashboard
        from r2_serve.lab.load.replicas import dashboard_replicas

        yield Target(url, dashboard_replicas(Dashboard(dashboard)) if dashboard is not None else None)
        return
    from r2_serve.lab.load.failing import check_failures, local_kill
    from r2_serve.lab.load.replicas import local_replicas, local_starts
    from r2_serve.lab.workload import SCRIPTED_POOL
    from r2_serve.ops.local.cluster import free_port, local_cluster, prepare_environment
    from r2_serve.ops.local.nodes import local_nodes
    from r2_serve.serve_config import load as load_config

    prepare_environment()
    path = SCRIPTED_POOL if str(config) == "scripted" else config
    loaded = load_config(path, with_imports=True)
    check_failures(failures, loaded.model_apps, has_nodes=nodes > 0)
    with ExitStack() as stack:
        several = stack.enter_context(local_nodes(nodes, gpus_each=gpus)) if nodes else None
        cluster = local_cluster(
            loaded,
            port=free_port(),
            num_gpus=gpus or None,
            address=several.address if several else "local",
            start_timeout_s=start_timeout_s,
            say=typer.echo,
        )
        base_url = stack.enter_context(cluster)
        read = local_replicas(loaded)
        yield Target(base_url, read, local_kill(read, several), local_starts)
