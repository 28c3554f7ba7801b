"""`r2-serve prefetch`: the weights of a config on this machine, a claim, or every node of a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from r2_serve.engines.fetching import Checkpoint, checkpoint_of, fetch
from r2_serve.errors import EngineUnavailable, counted
from r2_serve.ops.command_line import plain_errors
from r2_serve.serve_config import ServeConfig


def prefetch(
    config: Annotated[Path, typer.Argument(help="A Serve config, such as serve_config.yaml.")],
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster whose nodes fetch, each for itself; `auto`: that of this machine. "
            "Default: this machine alone fetches, into HF_HOME."
        ),
    ] = None,
) -> None:
    """Fetch the weights of local models before their replicas start, into the cache in HF_HOME.

    On Kubernetes, run it once in a pod that has the claim. Nodes that an autoscaler adds later fetch
    themselves.

    \b
    Example:  r2-serve prefetch serve_config.yaml
              HF_HOME=/models/huggingface r2-serve prefetch serve_config.yaml
              r2-serve prefetch serve_config.yaml --address auto
    """
    from r2_serve.serve_config import load

    with plain_errors():
        wanted = checkpoints_of(load(config))
        if not wanted:
            typer.echo("nothing to fetch: no local model is one of the hub")
        elif address is None:
            for checkpoint in wanted:
                typer.echo(f"{checkpoint.name}: fetching")
                typer.echo(f"{checkpoint.name}: {fetch(checkpoint)}")
        else:
            fetch_on_nodes(wanted, address)


def checkpoints_of(config: ServeConfig) -> list[Checkpoint]:
    """The checkpoints of the local models that come from the hub, each once."""
    found = (checkpoint_of(server.engine) for server in config.model_apps.values())
    return list(dict.fromkeys(checkpoint for checkpoint in found if checkpoint is not None))


def fetch_on_nodes(wanted: list[Checkpoint], address: str) -> None:
    """Each node that can run a replica fetches all of `wanted`, one after the other.

    Raises: EngineUnavailable if a node failed, after all others have ended.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address, log_to_driver=False)
    task = ray.remote(num_cpus=0, max_retries=2)(fetch)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].keys() & {"CPU", "GPU"}]
    at = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            checkpoint
        ): f"{node['NodeManagerHostname']}: {checkpoint.name}"
        for node in nodes
        for checkpoint in wanted
    }
    typer.echo(
        f"{counted(len(nodes), 'node')} to fill with {', '.join(checkpoint.name for checkpoint in wanted)}"
    )
    failures, left = [], list(at)
    while left:
        (done,), left = ray.wait(left)
        try:
            typer.echo(f"{at[done]}: {ray.get(done)}")
        except ray.exceptions.RayError as e:
            failures.append(f"{at[done]}: {str(e).strip().splitlines()[-1]}")
    if failures:
        raise EngineUnavailable("\n".join(failures))
