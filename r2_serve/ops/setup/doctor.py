"""`r2-serve doctor`: what is installed and reachable, and what to do about what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.ops.command_line import plain_errors
from r2_serve.ops.setup.machine import Finding, machine_findings

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "error": ("ERROR", "red")}


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="A Serve config: its needs, keys and providers are looked at too."
        ),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask each hosted model for one token, which costs a little.")
    ] = False,
) -> None:
    """Look at this machine, and at the needs of a config: packages, GPUs, disk, port, keys, providers.

    Exit status: 1 if something must be mended first.

    \b
    Example:  r2-serve doctor
              r2-serve doctor --config r2.yaml
              r2-serve doctor --config r2.yaml --ask
    """
    from r2_serve.ops.setup.providers_reached import provider_findings
    from r2_serve.serve_config import load

    with plain_errors():
        loaded = load(config) if config else None
        findings = list(machine_findings(loaded))
        for finding in findings:
            _show(finding)
        if loaded is not None:
            reached = provider_findings(loaded, asks=ask)
            for finding in reached:
                _show(finding)
            findings += reached
    num_errors = sum(finding.level == "error" for finding in findings)
    num_warnings = sum(finding.level == "warning" for finding in findings)
    typer.echo(f"errors: {num_errors}, warnings: {num_warnings}")
    if num_errors:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    typer.echo(f"{typer.style(f'{mark:<8}', fg=colour)}{finding.what}: {finding.found}")
    if finding.advice:
        typer.echo(f"        -> {finding.advice}")
