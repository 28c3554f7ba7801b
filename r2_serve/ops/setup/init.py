"""`r2-serve init`: a first config in the shortest form that works, with comments."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import jinja2
import typer
import yaml

from r2_serve.config.prices import table_name
from r2_serve.config.providers import PROVIDERS
from r2_serve.errors import ConfigError, counted
from r2_serve.ops.command_line import plain_errors
from r2_serve.ops.setup.choice import (
    DESCRIPTIONS,
    GPU_USD_PER_HOUR,
    SUGGESTED,
    VIRTUAL_MODEL,
    Chosen,
    by_price,
    from_environment,
    from_server,
    hosted,
    local,
)

Preset = Literal["hosted", "laptop", "one-gpu", "cluster"]
LOCAL_MODELS: Mapping[Preset, tuple[str, ...]] = {
    "one-gpu": ("Qwen/Qwen2.5-3B-Instruct",),
    "cluster": ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
}
"""Models that the presets run on GPUs, one each, if none is named: each fits a card of 24 GB."""
CLUSTER_REPLICAS = 4
"""Most replicas of a deployment in the preset `cluster`."""
PRESETS = {
    "hosted": "models of providers by their APIs: keys alone, no GPU",
    "laptop": "models of an Ollama or llama.cpp server on this machine, and those of providers if you want",
    "one-gpu": "a small model on this machine's GPU, and stronger ones of providers",
    "cluster": "several models on the GPUs of a Ray cluster with autoscaling, and those of providers",
}


def init(
    file: Annotated[Path, typer.Argument(help="The config to write.")] = Path("r2.yaml"),
    preset: Annotated[
        Preset | None, typer.Option(help="What the models run on. Default: it is asked, or `hosted`.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A hosted model as PROVIDER/MODEL, or PROVIDER/MODEL@IN,OUT with prices in USD per million "
            "tokens; repeat for more. Default: a cheap and a strong one of each provider whose key is set.",
        ),
    ] = None,
    gpu_model: Annotated[
        list[str] | None,
        typer.Option("--gpu-model", "-g", help="A model of the Hugging Face hub for a GPU; repeat for more."),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at", help="Another address of a provider, such as a proxy: openai=http://HOST:PORT/v1"
        ),
    ] = None,
    max_cost_usd: Annotated[float, typer.Option(min=1e-6, help="The most a request may cost, in USD.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a first config with comments: three lines for a model. Keys stay in the environment.

    Asks what it is not given if a terminal is attached; otherwise it takes what the environment has.

    \b
    Example:  r2-serve init
              r2-serve init --preset hosted -m openai/gpt-6-luna -m anthropic/claude-sonnet-5-5
              r2-serve init laptop.yaml --preset laptop
              r2-serve init gpu.yaml --preset one-gpu -g Qwen/Qwen2.5-3B-Instruct -m deepseek/deepseek-v4-pro
    """
    with plain_errors():
        if file.exists() and not force:
            raise ConfigError(f"{file} exists: name another file, or replace it with --force")
        is_asking = sys.stdin.isatty() and not (preset or model or gpu_model)
        chosen_preset = preset or (_asked_preset() if is_asking else "hosted")
        named = model or (_asked_models() if is_asking and chosen_preset != "laptop" else None)
        models = chosen(chosen_preset, named, gpu_model or (), _addresses(at or ()), os.environ)
        replicas = CLUSTER_REPLICAS if chosen_preset == "cluster" else 1
        text = config_text(models, file, replicas=replicas, max_cost_usd=Decimal(str(max_cost_usd)))
        file.write_text(text, encoding="utf-8")
        _tell(file, models)


def chosen(
    preset: Preset,
    named: Sequence[str] | None,
    gpu_models: Sequence[str],
    addresses: Mapping[str, str],
    environment: Mapping[str, str],
) -> list[Chosen]:
    """The models of the config to be written.

    Raises: ConfigError if there is none, or one is not known.
    """
    names = list(named) if named is not None else from_environment(environment)
    if preset == "laptop" and named is None:
        names = [*_of_any_server(addresses), *names]
    models = [local(name) for name in gpu_models or LOCAL_MODELS.get(preset, ())]
    models += [hosted(name, addresses) for name in names]
    if not models:
        variables = ", ".join(provider.api_key_env for provider in PROVIDERS.values() if provider.api_key_env)
        raise ConfigError(
            f"no model to write about: name some with --model, such as openai/{SUGGESTED['openai'][0]}, or "
            f"set the key of a provider ({variables}), or take --preset laptop for a server on this machine"
        )
    return models


def config_text(models: Sequence[Chosen], file: Path, *, replicas: int, max_cost_usd: Decimal) -> str:
    """The config of a router over `models`, whose every part has at most `replicas` replicas."""
    ordered = by_price(models)
    names = [model.name for model, _ in ordered]
    providers = [PROVIDERS[model.engine["provider"]] for model, _ in ordered if not model.hub_name]
    environment = jinja2.Environment(  # makes YAML, no HTML  # noqa: S701  # nosec B701
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["flow"] = _flow
    environment.filters["plain"] = lambda price: f"{price.normalize():f}"
    template = environment.from_string((files(__package__) / "first_config.yaml.j2").read_text("utf-8"))
    return template.render(
        models=ordered,
        descriptions=DESCRIPTIONS,
        planner=names[(len(names) - 1) // 2],
        replicas=replicas,
        gpu_usd_per_hour=GPU_USD_PER_HOUR,
        virtual_model=VIRTUAL_MODEL,
        max_cost_usd=max_cost_usd,
        date=date.today().isoformat(),
        file=file,
        table=table_name(),
        has_local=any(model.hub_name for model in models),
        has_listed=any(not m.hub_name and not m.price_source and m.usd_out for m in models),
        variables=dict.fromkeys(provider.api_key_env for provider in providers if provider.api_key_env),
    )


def _flow(engine: Mapping[str, str]) -> str:
    return yaml.safe_dump(dict(engine), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _of_any_server(addresses: Mapping[str, str]) -> list[str]:
    """The models of the first server of this machine that answers. Raises: ConfigError if none does."""
    refusals = []
    for provider in (name for name, entry in PROVIDERS.items() if entry.is_local):
        try:
            return from_server(provider, addresses)
        except ConfigError as e:
            refusals.append(f"{provider}: {e.message}")
    raise ConfigError("no server of models on this machine:\n  " + "\n  ".join(refusals))


def _addresses(given: Sequence[str]) -> dict[str, str]:
    pairs = dict(item.partition("=")[::2] for item in given)
    for provider, address in pairs.items():
        if provider not in PROVIDERS or not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"--at {provider}={address} is not PROVIDER=http(s)://...; providers: {', '.join(PROVIDERS)}"
            )
    return pairs


def _asked_preset() -> Preset:
    for name, text in PRESETS.items():
        typer.echo(f"  {name:<8} {text}")
    while (answer := typer.prompt("What do your models run on?", default="hosted")) not in PRESETS:
        typer.echo(f"  {answer!r} is none of {', '.join(PRESETS)}")
    return answer  # type: ignore[no-any-return]


def _asked_models() -> list[str] | None:
    found = from_environment()
    default = " ".join(found)
    typer.echo(
        "Hosted models as PROVIDER/MODEL, with blanks between; `r2-serve prices` lists those with a price."
    )
    if found:
        typer.echo("The default is what the keys in your environment can reach.")
    answer = typer.prompt("Which ones?", default=default, show_default=bool(found))
    return str(answer).split() or None


def _tell(file: Path, models: Sequence[Chosen]) -> None:
    """Says what to do next."""
    from r2_serve.serve_config import check

    problems = [p for p in check(file) if p.severity == "error"]
    for problem in problems:
        typer.secho(str(problem), fg="red")
    providers = [PROVIDERS[model.engine["provider"]] for model in models if not model.hub_name]
    unset = dict.fromkeys(
        p.api_key_env for p in providers if p.api_key_env and not os.environ.get(p.api_key_env)
    )
    typer.echo(
        f"written: {file}, {counted(len(models), 'model')}: {', '.join(m[0].name for m in by_price(models))}"
    )
    typer.echo("next:")
    for variable in unset:
        typer.echo(f"  export {variable}=...")
    in_process = "" if any(model.hub_name for model in models) else "--in-process "
    typer.echo(f"  r2-serve doctor --config {file}")
    typer.echo(f"  r2-serve up {in_process}--config {file}")
    typer.echo("  r2-serve ask 'What is 17 + 25?'            (in a second terminal)")
