"""`r2-serve kuberay` and `r2-serve monitoring`: files for other programs, made from a Serve config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from r2_serve.errors import ConfigError
from r2_serve.ops.command_line import DEFAULT_CONFIG, plain_errors
from r2_serve.ops.deploy_files import monitoring as made
from r2_serve.ops.deploy_files.pods import GpuGroup, Node
from r2_serve.ops.deploy_files.rayservice import Options, manifest_text
from r2_serve.ops.deploy_files.templates import documents

if TYPE_CHECKING:
    from r2_serve.serve_config import ServeConfig

ConfigOption = Annotated[Path, Option("--config", "-c", help="The Serve config, the source of truth.")]
ImageOption = Annotated[str, Option(help="Image built from Dockerfile, with Ray and the engines.")]
NameOption = Annotated[str, Option(help="Name of the RayService.")]
NamespaceOption = Annotated[str, Option(help="Kubernetes namespace.")]
SecretOption = Annotated[str, Option(help="Secret with the provider keys, by the names of the variables.")]
KeysSecretOption = Annotated[str, Option(help="Secret with keys.yaml, mounted as `server.keys_file`.")]
AuthSecretOption = Annotated[str | None, Option(help="Secret with Ray's token; default: KubeRay makes one.")]
SizeOption = Annotated[str, Option(help="Size of such a pod, as 4cpu,16gi,1gpu; `auto`: a replica's needs.")]
GroupOption = Annotated[
    list[str] | None,
    Option(
        help="NAME=SIZE[,FEWEST:MOST]: GPU pods of one size, whole GPUs or a MIG profile, such as "
        "small=4cpu,16gi,1mig-1g.10gb; repeatable. Replaces --gpu-node and --gpu-nodes."
    ),
]
CountOption = Annotated[str | None, Option(help="FEWEST:MOST such pods; default: the replicas' needs.")]
SelectorOption = Annotated[
    list[str] | None, Option(help="[GROUP:]LABEL=VALUE of nodes for GPU pods; repeatable.")
]
RoutersOption = Annotated[
    int | None,
    Option(min=1, help="Fewest routers, each on a node of its own; default: 2, or 1 with a SQLite file."),
]
RedisOption = Annotated[
    str | None, Option(help="HOST:PORT of a Redis for Ray's state: workers then outlive the head.")
]
RedisSecretOption = Annotated[str | None, Option(help="Secret with the password of Redis as `password`.")]
ClaimOption = Annotated[list[str] | None, Option(help="CLAIM=DIRECTORY: a volume claim for all pods.")]
OutOption = Annotated[Path, Option(help="Directory to write to; files of the same name are replaced.")]
EndpointOption = Annotated[str | None, Option(help="The router's HOST:PORT; default: the config's.")]
KeyFileOption = Annotated[str | None, Option(help="File with a client key, if the endpoint asks for one.")]
RayTargetsOption = Annotated[str, Option(help="The list of nodes that Ray keeps up to date on its head.")]
SpendOption = Annotated[float | None, Option(min=0, help="Alert above this spend.")]
KubernetesOption = Annotated[bool, Option("--kubernetes", help="Write objects of Prometheus' operator.")]
MetricsSecretOption = Annotated[str, Option(help="With --kubernetes: Secret with a client key as `key`.")]
RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"  # noqa: S108  # nosec B108
METRICS_SECRET = "r2-metrics-key"  # noqa: S105  # nosec B105
GROUP = re.compile(r"(?P<name>[a-z][a-z0-9-]*)=(?P<size>[^:]+?)(,(?P<bounds>\d+:\d+))?")
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
    gpu_group: GroupOption = None,
    gpu_selector: SelectorOption = None,
    claim: ClaimOption = None,
    routers: RoutersOption = None,
    redis: RedisOption = None,
    redis_secret: RedisSecretOption = None,
) -> None:
    """Print a KubeRay RayService that runs this Serve config: sized pods, secrets by name.

    \b
    Example:  r2-serve kuberay --config serve_config.yaml --image registry.example/r2:0.1.0 > rayservice.yaml
              kubectl create secret generic r2-env --from-env-file=keys.env
              kubectl apply -f rayservice.yaml
              r2-serve kuberay --gpu-group l4=4cpu,16gi,1gpu --gpu-group h100=64cpu,512gi,4gpu,0:2
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
            cpu_nodes=_bounds("--cpu-nodes", cpu_nodes),
            gpu_groups=_groups(gpu_group, gpu_node, gpu_nodes),
            gpu_nodes=_bounds("--gpu-nodes", gpu_nodes),
            gpu_selector=_pairs("--gpu-selector", gpu_selector),
            claims=_pairs("--claim", claim),
            routers=routers,
            redis=redis,
            redis_secret=redis_secret,
        )
        typer.echo(manifest_text(_load(config), options), nl=False)


def monitoring(
    out: OutOption,
    config: ConfigOption = DEFAULT_CONFIG,
    endpoint: EndpointOption = None,
    key_file: KeyFileOption = None,
    ray_targets: RayTargetsOption = RAY_TARGETS,
    max_usd_per_hour: SpendOption = None,
    kubernetes: KubernetesOption = False,
    name: NameOption = Options.name,
    namespace: NamespaceOption = Options.namespace,
    metrics_secret: MetricsSecretOption = METRICS_SECRET,
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


def _groups(texts: list[str] | None, one_node: str, one_bounds: str | None) -> tuple[GpuGroup, ...]:
    """The groups of --gpu-group, or the one of --gpu-node; none where the replicas say how large pods are."""
    if not texts:
        if one_node == "auto":
            return ()
        return (GpuGroup("gpu", Node.parse("--gpu-node", one_node), _bounds("--gpu-nodes", one_bounds)),)
    if one_node != "auto" or one_bounds is not None:
        raise ConfigError("--gpu-node and --gpu-nodes are for one group: leave them out beside --gpu-group")
    groups = tuple(map(_group, texts))
    if len({group.name for group in groups} | {"cpu"}) <= len(groups):
        raise ConfigError(f"--gpu-group: got {texts}, expected each name once, and `cpu` is taken")
    return groups


def _group(text: str) -> GpuGroup:
    found = GROUP.fullmatch(text)
    if found is None:
        raise ConfigError(f"--gpu-group: got {text!r}, expected such as h100=64cpu,512gi,4gpu,0:2")
    return GpuGroup(
        found["name"],
        Node.parse("--gpu-group", found["size"]),
        _bounds("--gpu-group", found["bounds"]),
    )


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
