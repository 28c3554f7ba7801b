"""`r2-serve publish` and `r2-serve rollback`: the first needs an adapter on disk, the second only a name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from r2_serve.adapters import MANIFEST
from r2_serve.cluster.serve_api import Dashboard
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.publishing.plan import Module, Publication, plan_publication, plan_rollback
from r2_serve.ops.publishing.steps import ConfigFile
from r2_serve.ops.publishing.steps import publish as carry_out
from r2_serve.ops.publishing.steps import roll_back as carry_back

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The file that was deployed; it is changed, and what runs follows."),
]
VirtualOption = Annotated[
    list[str] | None, typer.Option("--virtual-model", help="Only these; default: all that the adapter fits.")
]
DashboardOption = Annotated[
    str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="The cluster's Ray dashboard.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=1, help="How long each step may take.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the change; write and deploy nothing.")
]
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"


def publish(
    adapter: Annotated[
        Path,
        typer.Argument(
            help=f"The adapter's directory, with its {MANIFEST}; every node must see it at this path."
        ),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    virtual_model: VirtualOption = None,
    keep: Annotated[
        int,
        typer.Option(min=1, help="Earlier adapters of the same module that stay loaded, to roll back to."),
    ] = 2,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Load an adapter into the running application and route to it, without a restart or a lost request.

    First every replica of its base model loads it; routing changes only after that. The file keeps its
    comments, and FILE.previous keeps the text before the change.

    \b
    Example:  r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml --dry-run
              r2-serve publish /mnt/r2/adapters/dec-0002 --config serve_config.yaml
    """
    with plain_errors():
        file = ConfigFile(config)
        plan = plan_publication(file.original, adapter, virtual_models=virtual_model or (), keep=keep)
        _describe(plan)
        if dry_run:
            _show_change(file, plan.routed)
            return
        carry_out(plan, file, Dashboard(dashboard, timeout_s=timeout_s), typer.echo)
    back = f"r2-serve rollback --config {config} --module {plan.manifest.module}"
    typer.echo(f"published {plan.manifest.name}. Back: {back}")


def rollback(
    module: Annotated[Module, typer.Option(help="decomposer or allocator.")],
    config: ConfigOption = DEFAULT_CONFIG,
    to: Annotated[
        str | None,
        typer.Option(help="A loaded adapter, or `base`: the model itself. Default: the one used before."),
    ] = None,
    virtual_model: VirtualOption = None,
    dashboard: DashboardOption = DEFAULT_DASHBOARD,
    timeout_s: TimeoutOption = 600.0,
    dry_run: DryRunOption = False,
) -> None:
    """Route back to an earlier adapter that is still loaded: one live change of the router, nothing is
    loaded.

    \b
    Example:  r2-serve rollback --module decomposer --config serve_config.yaml
              r2-serve rollback --module allocator --to alloc-0001
    """
    with plain_errors():
        file = ConfigFile(config)
        plan = plan_rollback(file.original, module, to=to, virtual_models=virtual_model or ())
        for name, (old, new) in plan.moves.items():
            typer.echo(f"{module} of {name}: {old} -> {new}")
        if dry_run:
            _show_change(file, plan.routed)
            return
        carry_back(plan, file, Dashboard(dashboard, timeout_s=timeout_s), typer.echo)
    ((old, _), *_) = plan.moves.values()
    forward = f"r2-serve rollback --config {config} --module {module} --to {old}"
    typer.echo(f"rolled back. Forward again: {forward}")


def _describe(plan: Publication) -> None:
    manifest = plan.manifest
    codec = f"codec {manifest.codec} version {manifest.codec_version}"
    typer.echo(f"{manifest.name}: {manifest.kind} adapter of {manifest.base}, {codec}, intact")
    for name, old in zip(plan.virtual_models, plan.replaced, strict=True):
        typer.echo(f"{manifest.module} of {name}: {old} -> {manifest.name}")
    if plan.dropped:
        typer.echo(f"unloaded from {plan.app}: {', '.join(plan.dropped)}")


def _show_change(file: ConfigFile, text: str) -> None:
    name = str(file.path)
    lines = difflib.unified_diff(file.original.splitlines(True), text.splitlines(True), name, name, n=2)
    typer.echo("".join(lines) + "dry run: nothing was written or deployed")
