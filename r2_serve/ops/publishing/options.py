"""Options that the commands of publishing share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The file that was deployed; it is changed, and what runs follows."),
]
VirtualOption = Annotated[
    list[str] | None, typer.Option("--virtual-model", help="Only these; default: all that the adapter fits.")
]
GateOption = Annotated[
    str | None, typer.Option("--gate", help="A fitted gate of the config file; default: its only one.")
]
DashboardOption = Annotated[
    str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="The cluster's Ray dashboard.")
]
RayServiceOption = Annotated[
    str | None,
    typer.Option(
        "--rayservice",
        help="[NAMESPACE/]NAME: change this RayService of KubeRay by kubectl, in place of --dashboard.",
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=1, help="How long each step may take.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show the change; write and deploy nothing.")
]
DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
