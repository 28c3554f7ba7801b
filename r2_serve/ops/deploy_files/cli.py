"""`r2-serve kuberay` and `r2-serve monitoring`: files for other programs, made from a Serve config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.deploy_files import monitoring as made
from r2_serve.ops.deploy_files.pods import Node
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from r2_serve.ops.deploy_files.templates import documents

if TYPE_CHECKING:
    from r2_serve.serve_config import ServeConfig

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The Serve config; it stays the source of truth.")
]
ImageOption = Annotated[
    str, typer.Option(help="Image with this package, Ray and the engines, built from Dockerfile.")
]
NameOption = Annotated[str, typer.Option(help="Name of the RayService.")]
NamespaceOption = Annotated[str, typer.Option(help="Kubernetes namespace.")]
SecretOption = Annotated[
    str, typer.Option(help="Secret with the provider keys, under the names of the config's variables.")
]
KeysSecretOption = Annotated[str, typer.Option(help="Secret with keys.yaml, mounted as `server.keys_file`.")]
AuthSecretOption = Annotated[
    str | None, typer.Option(help="Secret with Ray's own token; default: KubeRay makes one.")
]
SizeOption = Annotated[
    str,
    typer.Option(help="Size of such a pod, as 8cpu,16gi or 4cpu,16gi,1gpu; `auto`: what a replica needs."),
]
CountOption = Annotated[
    str | None, typer.Option(help="FEWEST:MOST such pods; default: what the replicas need.")
]
SelectorOption = Annotated[
    list[str] | None, typer.Option(help="LABEL=VALUE of Kubernetes nodes for GPU pods; repeat for more.")
]
ClaimOption = Annotated[
    list[str] | None, typer.Option(help="CLAIM=DIRECTORY: a PersistentVolumeClaim mounted in all pods.")
]
METRICS_SECRET = "r2-metrics-key"  # noqa: S105
BOUNDS = re.compile(r"(\d+):(\d+)")


def kuberay(
    config: ConfigOption = DEFAULT_CONFIG,
    image: ImageOption = Options.image,
    name: NameOption = Options.name,
    namespace: NamespaceOption = Options.namespace,
    secret: SecretOption = Options.secret,
    keys_secret: KeysSecretOption = Options.keys_secret,
    auth_secret: AuthSecretOption = None,
    head: SizeOption = "4cpu,16gi",
    cpu_node: SizeOption = "8cpu,16gi",
    gpu_node: SizeOption = "auto",
    cpu_nodes: CountOption = None,
    gpu_nodes: CountOption = None,
    gpu_selector: SelectorOption = None,
    claim: ClaimOption = None,
) -> None:
    """Print a KubeRay RayService that runs this Serve config: sized pods, secrets by name.

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
            head=Node.parse("--head", head),
            cpu_node=Node.parse("--cpu-node", cpu_node),
            gpu_node=None if gpu_node == "auto" else Node.parse("--gpu-node", gpu_node),
            cpu_nodes=_bounds("--cpu-nodes", cpu_nodes),
            gpu_nodes=_bounds("--gpu-nodes", gpu_nodes),
            gpu_selector=_pairs("--gpu-selector", gpu_selector),
            claims=_pairs("--claim", claim),
        )
        typer.echo(manifest_text(_load(config), options), nl=False)


def monitoring(
    out: Annotated[Path, typer.Option(help="Directory to write to; files of the same name are replaced.")],
    config: ConfigOption = DEFAULT_CONFIG,
    endpoint: Annotated[
        str | None, typer.Option(help="The router's HOST:PORT for Prometheus; default: the config's.")
    ] = None,
    key_file: Annotated[
        str | None,
        typer.Option(help="File with a client key on Prometheus' machine, if the endpoint has keys."),
    ] = None,
    ray_targets: Annotated[
        str, typer.Option(help="The list of nodes that Ray keeps up to date on its head.")
    ] = "/tmp/ray/prom_metrics_service_discovery.json",  # noqa: S108  # nosec B108
    max_usd_per_hour: Annotated[float | None, typer.Option(min=0, help="Alert above this spend.")] = None,
    kubernetes: Annotated[
        bool,
        typer.Option("--kubernetes", help="Write objects of Prometheus' operator for a KubeRay service."),
    ] = False,
    name: NameOption = Options.name,
    namespace: NamespaceOption = Options.namespace,
    metrics_secret: Annotated[
        str, typer.Option(help="With --kubernetes: Secret whose `key` is a client key.")
    ] = METRICS_SECRET,
) -> None:
    """Write what Prometheus and Grafana need: scraping, alert rules and a dashboard.

    \b
    Example:  r2-serve monitoring --config serve_config.yaml --out monitoring
              prometheus --config.file monitoring/prometheus.yml
    """
    with plain_errors():
        loaded = _load(config)
        rules = made.alert_rules(loaded, max_usd_per_hour)
        if kubernetes:
            texts = {
                "monitoring.yaml": documents(
                    made.operator_objects(loaded, rules, name, namespace, metrics_secret)
                )
            }
        else:
            texts = made.monitoring_files(
                out, made.prometheus_config(loaded, endpoint, key_file, ray_targets), rules
            )
    for path in made.write_files(out, texts):
        typer.echo(f"written: {path}")


def _load(path: Path) -> ServeConfig:
    from r2_serve.serve_config import load

    return load(path)


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
