"""`r2-serve kuberay` and `r2-serve monitoring`: files made from a Serve config, for other programs to carry out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.deploy_files.operator import OperatorTarget, operator_objects
from r2_serve.ops.deploy_files.pods import Node
from r2_serve.ops.deploy_files.prometheus import Target, write_monitoring
from r2_serve.ops.deploy_files.rayservice import Options, ray_service
from r2_serve.ops.deploy_files.text import documents, manifest_text

if TYPE_CHECKING:
    from r2_serve.serve_config import ServeConfig

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The Serve config; it stays the source of truth.")
]
NameOption = Annotated[str, typer.Option(help="Of the RayService.")]
NamespaceOption = Annotated[str, typer.Option(help="Kubernetes namespace.")]
METRICS_KEY = "r2-metrics-key"
NODE = re.compile(r"(?P<cpus>\d+(\.\d+)?)cpu,(?P<memory>\d+)gi(,(?P<gpus>\d+)gpu)?")
BOUNDS = re.compile(r"(\d+):(\d+)")


def kuberay(
    config: ConfigOption = DEFAULT_CONFIG,
    image: Annotated[
        str, typer.Option(help="With this package, Ray and the engines: built from Dockerfile.")
    ] = Options.image,
    name: NameOption = Options.name,
    namespace: NamespaceOption = Options.namespace,
    secret: Annotated[
        str, typer.Option(help="Secret with the provider keys, under the names of the config's variables.")
    ] = Options.secret,
    keys_secret: Annotated[
        str, typer.Option(help="Secret with keys.yaml, mounted as `server.keys_file`.")
    ] = Options.keys_secret,
    auth_secret: Annotated[
        str | None, typer.Option(help="Secret with Ray's own token; default: KubeRay makes one.")
    ] = None,
    head: Annotated[str, typer.Option(help="Size of the head's pod.")] = "4cpu,16gi",
    cpu_node: Annotated[str, typer.Option(help="Size of a pod without GPU.")] = "8cpu,16gi",
    gpu_node: Annotated[
        str | None,
        typer.Option(help="Size of a pod with GPUs; default: 4cpu,16gi,1gpu per GPU of a replica."),
    ] = None,
    cpu_nodes: Annotated[
        str | None, typer.Option(help="FEWEST:MOST pods without GPU; default: what the replicas need.")
    ] = None,
    gpu_nodes: Annotated[
        str | None, typer.Option(help="FEWEST:MOST pods with GPUs; default: what the replicas need.")
    ] = None,
    gpu_selector: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE of Kubernetes nodes for GPU pods; repeat for more.")
    ] = None,
    claim: Annotated[
        list[str] | None, typer.Option(help="CLAIM=DIRECTORY: a PersistentVolumeClaim mounted in all pods.")
    ] = None,
) -> None:
    """Print a KubeRay RayService that runs this Serve config: pods sized from it, secrets by name, token authentication on.

    \b
    Example:  r2-serve kuberay --config serve_config.yaml --image registry.example/r2:0.1.0 > rayservice.yaml
              kubectl create secret generic r2-env --from-env-file=keys.env
              kubectl apply -f rayservice.yaml
    """
    with plain_errors():
        options = Options(
            name=name,
            namespace=namespace,
            image=image,
            secret=secret,
            keys_secret=keys_secret,
            auth_secret=auth_secret,
            head=_node("--head", head),
            cpu_node=_node("--cpu-node", cpu_node),
            gpu_node=_node("--gpu-node", gpu_node) if gpu_node else None,
            cpu_nodes=_bounds("--cpu-nodes", cpu_nodes),
            gpu_nodes=_bounds("--gpu-nodes", gpu_nodes),
            gpu_selector=_pairs("--gpu-selector", gpu_selector),
            claims=_pairs("--claim", claim),
        )
        typer.echo(manifest_text(ray_service(_load(config), options), options), nl=False)


def monitoring(
    out: Annotated[
        Path, typer.Option(help="Directory to write to; files of the same name there are replaced.")
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    endpoint: Annotated[
        str | None,
        typer.Option(help="HOST:PORT that Prometheus reaches the router at; default: the config's."),
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(help="File with a client key, on Prometheus' machine, where the endpoint has keys."),
    ] = None,
    ray_targets: Annotated[
        str, typer.Option(help="The list of nodes that Ray keeps up to date on its head.")
    ] = "/tmp/ray/prom_metrics_service_discovery.json",  # noqa: S108  # nosec B108
    max_usd_per_hour: Annotated[float | None, typer.Option(min=0, help="Alert above this spend.")] = None,
    kubernetes: Annotated[
        bool,
        typer.Option("--kubernetes", help="Objects of Prometheus' operator instead, for a KubeRay service."),
    ] = False,
    name: NameOption = Options.name,
    namespace: NamespaceOption = Options.namespace,
    metrics_secret: Annotated[
        str, typer.Option(help="With --kubernetes: Secret whose `key` is a client key.")
    ] = METRICS_KEY,
) -> None:
    """Write what Prometheus and Grafana need: scraping, alert rules and a dashboard.

    \b
    Example:  r2-serve monitoring --config serve_config.yaml --out monitoring
              prometheus --config.file monitoring/prometheus.yml
    """
    with plain_errors():
        loaded = _load(config)
        if kubernetes:
            target = OperatorTarget(name, namespace, loaded.http_port, metrics_secret)
            out.mkdir(parents=True, exist_ok=True)
            written = [out / "monitoring.yaml"]
            written[0].write_text(documents(operator_objects(loaded, target, max_usd_per_hour)))
        else:
            written = write_monitoring(
                loaded, out, Target.of(loaded, endpoint, key_file, ray_targets), max_usd_per_hour
            )
    for path in written:
        typer.echo(f"written: {path}")


def _load(path: Path) -> ServeConfig:
    from r2_serve.serve_config import load

    return load(path)


def _node(option: str, text: str) -> Node:
    found = NODE.fullmatch(text.lower())
    if found is None:
        raise ConfigError(f"{option}: got {text!r}, expected such as 8cpu,16gi or 4cpu,16gi,1gpu")
    return Node(float(found["cpus"]), int(found["memory"]), int(found["gpus"] or 0))


def _bounds(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = BOUNDS.fullmatch(text)
    if found is None or int(found[1]) > int(found[2]):
        raise ConfigError(f"{option}: got {text!r}, expected FEWEST:MOST such as 1:4")
    return int(found[1]), int(found[2])


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs = dict(text.split("=", 1) for text in texts or () if "=" in text)
    if len(pairs) != len(texts or ()):
        raise ConfigError(f"{option}: got {texts}, expected NAME=VALUE, each name once")
    return pairs
